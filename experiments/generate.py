"""Ask a LLaVA about an image, with its visual tokens carved down or not.

Prints the answer, what was held for it (visual tokens, sequence, KV cache), and how long each part took. With --chat
it holds a conversation: every line of standard input is a question, until the end of input or "exit".
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from experiments.core import cli, loading, methods, preprocessing, schedules
from experiments.core.memory import Request, check_request
from experiments.core.results import format_bytes, format_seconds
from experiments.data import conversation
from experiments.data.image_files import open_image
from experiments.reports import pictures
from models.engine.decode import DECODE_CAPACITY_BUCKET, DecodeConfig, finish
from models.engine.plan import Carve, has_budgets_per_image, parse, resolve
from models.engine.prompt import round_up
from models.errors import CommandError
from models.io.untrusted import file_problem

_EXAMPLES = """examples:
  python -m experiments.generate --image=photo.jpg --prompt="Where is the red circle?"
  python -m experiments.generate --image=photo.jpg --prompt="Where is the red circle?" --keep=0.222 --picture=carved.png
  python -m experiments.generate --image=photo.jpg --prompt="Where is it?" --schedule tome@tower=288 tokencarve@2=128
  python -m experiments.generate --image=one.jpg --image=two.jpg --chat
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to ask, and of whom.

    Attributes:
      model: folder of a checkpoint, or a model id on the hub.
      images: files.
      carve: how visual tokens are cut, as `generate` of the model takes it; None carves nothing.
      max_new_tokens: of the longest answer.
      dtype: of weights and hidden states.
      revision: of the model on the hub.
      clip: what tells relevance to the question, as `model`; None for nothing.
      clip_revision: of that on the hub.
      image_aspect_ratio: "pad", "crop" or "checkpoint", see `experiments.core.preprocessing`.
    """

    model: str
    images: tuple[Path, ...]
    carve: Carve = None
    max_new_tokens: int = 32
    dtype: str = "float32"
    revision: str | None = None
    clip: str | None = None
    clip_revision: str | None = None
    image_aspect_ratio: str = "checkpoint"


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result, waited for, and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - start


def generate(settings: Settings, prompt_text: str, picture: Path | None = None) -> None:
    """Answer a prompt, and print what that took.

    Args:
      settings: of whom, and about which images.
      prompt_text: what to ask; the checkpoint's chat template is added.
      picture: where a picture of what was kept goes.

    Raises:
      CommandError: an image cannot be read, the model not be carved like that, or the picture not be drawn.
      Whatever `experiments.core.loading.load` raises.
    """
    if loading.not_utf8(prompt_text):
        raise CommandError(f"--prompt is not UTF-8: {prompt_text!r}")
    images = [open_image(path) for path in settings.images]
    checkpoint, load_s = _timed(lambda: _load(settings))
    llava = checkpoint.llava
    if picture and not llava.square:
        raise CommandError("a picture cannot show the tiles of a LLaVA-NeXT; ask for none")
    try:
        inputs = checkpoint.encode([images], [prompt_text])
        schedule = parse(settings.carve, num_layers=llava.config.text.num_layers)
        prompt = llava.prompt(**inputs.named, per_image=has_budgets_per_image(schedule))
        check_request(llava, inputs, settings.max_new_tokens)
        room_for = prompt.visual_slots.shape[1]
        methods.check_evidence(resolve(schedule, room_for, images=prompt.images).cuts, clip=checkpoint.clip)
    except ValueError as error:
        raise CommandError(str(error)) from error
    visual = int(prompt.visual_valid.sum())

    def answer() -> jax.Array:
        return llava.generate(**inputs.named, max_new_tokens=settings.max_new_tokens, carve=schedule)

    decode_capacity = round_up(settings.max_new_tokens, DECODE_CAPACITY_BUCKET)
    tokens, first_s = _timed(answer)
    (text,) = checkpoint.decode(tokens)
    print(text)
    _, whole_s = _timed(answer)  # once more, now that all is compiled
    prefilled, prefill_s = _timed(lambda: llava.prefill(prompt, carve=schedule, decode_capacity=decode_capacity))
    left = int(prefilled.cuts[-1].indices.shape[1]) if prefilled.cuts else room_for
    left = min(left, visual)
    length, slots = int(prompt.lengths[0]), prompt.input_ids.shape[1] + decode_capacity
    held = prefilled.cache.nbytes
    held_slots = sum(key.shape[-2] for key, _ in prefilled.cache.layers)
    uncarved = held // held_slots * slots * len(prefilled.cache.layers)  # every slot takes the same space
    count, decode_config = tokens.shape[1], DecodeConfig.of(llava.config)
    _, decode_s = _timed(
        lambda: finish(llava, prefilled, 0, max_new_tokens=settings.max_new_tokens, decode_config=decode_config)
    )
    facts = {
        "visual tokens": _change(str(visual), str(left)),
        "sequence": f"{_change(str(length), str(length - visual + left))} tokens",
        "KV cache": f"{_change(format_bytes(uncarved), format_bytes(held))}, room for {decode_capacity} new tokens "
        "included",
        "load": format_seconds(load_s),
        "compile": format_seconds(max(0.0, first_s - whole_s)),
        "prefill": format_seconds(prefill_s),
        "decode": f"{format_seconds(decode_s)}, {count} token{'s' * (count != 1)}",
    }
    print()
    for name, fact in facts.items():
        print(f"{name:<15}{fact}")
    if picture:
        views = pictures.views_of(list(checkpoint.seen(inputs.pixel_values)), llava.config, prefilled)
        page = pictures.draw(views)
        pictures.save(page, picture)
        print(f"{'picture':<15}{picture}")


def _load(settings: Settings) -> loading.Checkpoint:
    return loading.load(
        settings.model,
        dtype=settings.dtype,
        revision=settings.revision,
        clip=settings.clip,
        clip_revision=settings.clip_revision,
        image_aspect_ratio=settings.image_aspect_ratio,
        request=Request(settings.max_new_tokens, images=len(settings.images)),
    )


def chat(settings: Settings) -> None:
    """Answer line by line what standard input asks.

    Raises:
      CommandError: an image cannot be read, or the model not be carved like that.
      Whatever `experiments.core.loading.load` raises.
    """
    images = [open_image(path) for path in settings.images]
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused by itself
    talk = conversation.Conversation(
        _load(settings), images, carve=settings.carve, max_new_tokens=settings.max_new_tokens
    )
    try:
        for question in conversation.questions(sys.stdin):
            try:
                for piece in talk.ask(question):
                    print(piece, end="", flush=True)
                print(flush=True)
            except CommandError as error:  # the line is refused; the conversation goes on
                print(cli.one_line(error), file=sys.stderr, flush=True)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _check_picture(path: Path, carve: Carve) -> None:
    """Find out before the work what would fail after it."""
    if carve is None:
        raise CommandError("--picture shows what a carve keeps; pass --keep too, such as --keep=0.222")
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError, RuntimeError):  # no format, or one that Pillow cannot write by itself
        raise CommandError(f"--picture {path}: pass a file name that ends in .png or .jpg") from None
    if path.exists() and (problem := file_problem(path)):
        raise CommandError(f"--picture {path} {problem}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise CommandError(f"--picture {path}: {above} is no folder that can be written to")


def _run(flags: argparse.Namespace) -> None:
    settings = Settings(
        model=flags.model,
        images=tuple(flags.image),
        carve=schedules.read(flags.schedule) if flags.schedule else flags.keep,
        max_new_tokens=flags.max_new_tokens,
        dtype=flags.dtype,
        revision=flags.revision,
        clip=flags.clip,
        clip_revision=flags.clip_revision,
        image_aspect_ratio=flags.image_aspect_ratio,
    )
    if flags.chat:
        if flags.picture:
            raise CommandError("--picture goes with --prompt, not with --chat")
        chat(settings)
        return
    if flags.picture:
        _check_picture(flags.picture, flags.schedule or flags.keep)
    generate(settings, flags.prompt, flags.picture)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, answer, and say what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.generate", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="what is asked about; give it several times for several images",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="what to ask; the checkpoint's chat template is added")
    asked.add_argument(
        "--chat", action="store_true", help='hold a conversation: ask line by line, and end it with "exit"'
    )
    carve = parser.add_mutually_exclusive_group()
    cli.add_keep_flag(carve, default=None)
    schedules.add_flag(carve, several=False)
    cli.add_model_flags(parser)
    cli.add_clip_flags(parser)
    preprocessing.add_aspect_ratio_flag(parser, default="checkpoint")
    parser.add_argument(
        "--max-new-tokens",
        type=cli.positive,
        default=32,
        metavar="TOKENS",
        help="the longest answer (default: %(default)s)",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write a picture of which patches were kept, merged and dropped"
    )
    return cli.run(_run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
