"""Embed images for a serving engine, their visual tokens cut before the decoder, or ask a server with them.

Writes one file per image, FOLDER/NAME.npy, float32 [K, D]: base64 of it is what vLLM's HTTP API takes in an image's
place, and `torch.from_numpy(numpy.load(FILE))` what `LLM.generate` takes. With --send no file is written: a server that
runs is asked.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.core import cli, loading, methods, preprocessing
from experiments.core.memory import Request, check_request
from experiments.data.image_files import open_image
from models.errors import CommandError
from models.io.writing import replacing
from models.llava import Llava
from models.serving import ask, before_decoder, image_embeds
from models.serving.client import as_file, check_address

_EXAMPLES = """examples:
  python -m experiments.embed --keep=64 experiments/gallery/scene.png
                                                          64 rows by visionzip, in results/embeds/scene.npy
  python -m experiments.embed --method=divprune --keep=64 experiments/gallery/scene.png \\
      --send=http://127.0.0.1:8000 --prompt="Is there a blue star in the image?"
                                                          asks a server that has the same model
"""


def _files(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each image's rows are written; CommandError where two would be one file."""
    files = {image: folder / f"{image.stem}.npy" for image in images}
    if len(set(files.values())) < len(images):
        raise CommandError("two of the images have one name, and would be one file; rename one, or pass them apart")
    return files


def _embed(flags: argparse.Namespace) -> list[jax.Array]:
    """Rows of each image; one image at a time, so that a fraction is of its own tokens."""
    compressor = methods.find(flags.method)
    keep = 1.0 if flags.keep is None else flags.keep
    with methods.naming("--method"):
        before_decoder(compressor, keep)
    images = [open_image(path) for path in flags.images]
    checkpoint = loading.load(
        flags.model,
        dtype=flags.dtype,
        revision=flags.revision,
        image_aspect_ratio=flags.image_aspect_ratio,
        request=Request(0, images=1),
    )
    if not isinstance(checkpoint.llava, Llava):
        name = checkpoint.llava.model_type
        raise CommandError(f"{flags.model} is a {name}, which this command does not know; `generate` does")
    cli.note_images(flags.model, [image.size for image in images])
    found: list[jax.Array] = []
    for path, image in zip(flags.images, images, strict=True):
        inputs = checkpoint.encode([[image]], [""])
        check_request(checkpoint.llava, inputs, 0)
        with methods.naming(str(path)):
            found += image_embeds(checkpoint.llava, **inputs.named, method=compressor, keep=keep)
    return found


def _run(flags: argparse.Namespace) -> None:
    if (flags.send is None) != (flags.prompt is None):
        raise CommandError("--send and --prompt go together: where to ask, and what")
    if flags.send is not None:
        check_address(flags.send)
        if loading.not_utf8(flags.prompt):
            raise CommandError(f"--prompt is not UTF-8: {flags.prompt!r}")
        answer = ask(flags.send, _embed(flags), flags.prompt, max_new_tokens=flags.max_new_tokens)
        print(f"{answer.text}\n\n{answer.prompt_tokens} prompt tokens, {answer.completion_tokens} of the answer")
        return
    files = _files(flags.images, flags.out)
    for (image, file), rows in zip(files.items(), _embed(flags), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_bytes(as_file(rows))
        print(f"{file}  {rows.shape[0]} x {rows.shape[1]}  of {image}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, embed, and print what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.embed", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="what is embedded, in this order")
    cli.add_keep_flag(parser, default=None)
    parser.add_argument(
        "--method",
        default="visionzip",
        metavar="NAME",
        help="what leaves KEEP tokens of each image without knowing the question: a registered name, or your own, as "
        "package.module:object or path/to/file.py:object (default: %(default)s)",
    )
    cli.add_model_flags(parser)
    preprocessing.add_aspect_ratio_flag(parser, default="checkpoint")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/embeds"),
        metavar="FOLDER",
        help="for the files (default: %(default)s)",
    )
    parser.add_argument(
        "--send", metavar="URL", help="ask this OpenAI-compatible server; it must have the model that --model names"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what to ask; the server adds the chat template")
    cli.add_answer_flag(parser)
    return cli.run(_run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
