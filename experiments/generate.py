"""Ask a model about images or a video, with its visual tokens carved down or not.

Prints the answer, what was held for it (visual tokens, sequence, KV cache), and how long each part took. With --chat
it holds a conversation: every line of standard input is a question, until the end of input or "exit".
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from PIL import Image

from experiments.core import cli, loading, methods, preprocessing, schedules
from experiments.core.conversation import Conversation
from experiments.core.memory import Request, check_request
from experiments.core.results import format_bytes, format_seconds
from experiments.data.image_files import open_image
from experiments.data.videos import MOST_FRAMES, Clip, open_video
from experiments.evaluation.cells import check_blocks
from experiments.metrics.latency import timed
from experiments.reports import pictures
from models.engine.decode import DECODE_CAPACITY_BUCKET, DecodeConfig, finish
from models.engine.plan import Carve, has_budgets_per_image, resolve
from models.engine.prompt import round_up
from models.errors import CommandError, ConfigError
from models.io.untrusted import file_problem

_EXAMPLES = r"""examples:
  python -m experiments.generate --image=experiments/gallery/scene.png --prompt="What number is on the blue card?"
                                                          a scene that the shipped model has learnt to read
  python -m experiments.generate --image=experiments/gallery/scene.png --prompt="Is there a blue star in the image?" \
      --keep=128 --method=divprune --picture=kept.png     fewer tokens, and which
  python -m experiments.generate --image=experiments/gallery/scene.png --prompt="What word is on the purple sign?" \
      --schedule tome@tower=288 tokencarve@2=128          several cuts
  python -m experiments.generate --model=path/to/llava --image=one.jpg --image=two.jpg --chat
                                                          photographs, with a model that knows such
  python -m experiments.generate --model=path/to/qwen2.5-vl --video=clip.mp4 --prompt="What happens?" \
      --frames=32 --keep=0.1 --method=vidcom2               a video, or a folder with its frames
"""


def _load(flags: argparse.Namespace) -> loading.Checkpoint:
    """The checkpoint that the flags name; errors of `experiments.core.loading.load`."""
    return loading.load(
        flags.model,
        dtype=flags.dtype,
        revision=flags.revision,
        clip=flags.clip,
        clip_revision=flags.clip_revision,
        image_aspect_ratio=flags.image_aspect_ratio,
        request=Request(flags.max_new_tokens, images=len(flags.image)),
    )


def _generate(flags: argparse.Namespace, carve: Carve) -> None:
    """Answer a prompt, and print what that took.

    Raises:
      CommandError: an image cannot be read, the model not be carved like that, or the picture not be drawn.
    """
    if loading.not_utf8(flags.prompt):
        raise CommandError(f"--prompt is not UTF-8: {flags.prompt!r}")
    images, videos, most = *_media(flags), flags.max_new_tokens
    checkpoint, load_s = timed(lambda: _load(flags))
    llava = checkpoint.llava
    try:
        turns = [loading.user(flags.prompt, images=len(images), videos=len(videos))]
        inputs = checkpoint.encode_turns([images], [turns], videos=videos)
        schedule = llava.schedule(carve)
        prompt = llava.prompt(**inputs.named, per_image=has_budgets_per_image(schedule))
        check_request(llava, inputs, most)
        cuts = resolve(schedule, prompt.visual_slots.shape[1], images=prompt.images).cuts
        check_blocks(llava.config, cuts)
        methods.check_evidence(cuts, clip=checkpoint.clip)
    except ValueError as error:
        raise CommandError(str(error)) from error

    def answer() -> jax.Array:
        return llava.generate(**inputs.named, max_new_tokens=most, carve=schedule)

    cli.note_images(flags.model, [image.size for image in images])
    try:
        tokens, first_s = timed(answer)
    except ValueError as error:  # a method that cannot leave so few
        raise CommandError(str(error)) from error
    print(checkpoint.decode(tokens)[0])
    _, whole_s = timed(answer)  # once more, now that all is compiled
    capacity = round_up(most, DECODE_CAPACITY_BUCKET)
    prefilled, prefill_s = timed(lambda: llava.prefill(prompt, carve=schedule, decode_capacity=capacity))
    visual, length = int(prompt.visual_valid.sum()), int(prompt.lengths[0])
    left = min(visual, int(prefilled.cuts[-1].indices.shape[1])) if prefilled.cuts else visual
    cache, layers = prefilled.cache.nbytes, prefilled.cache.layers
    slot_bytes = cache // sum(key.shape[-2] for key, _ in layers)
    uncarved_cache = slot_bytes * (prompt.input_ids.shape[1] + capacity) * len(layers)
    config = DecodeConfig.of(llava.config)
    _, decode_s = timed(lambda: finish(llava, prefilled, 0, max_new_tokens=most, decode_config=config))
    count = tokens.shape[1]
    facts = {
        "frames": ", ".join(f"{len(video.frames)} of {video.total}" for video in videos),
        "visual tokens": _change(str(visual), str(left)),
        "sequence": f"{_change(str(length), str(length - visual + left))} tokens",
        "KV cache": f"{_change(format_bytes(uncarved_cache), format_bytes(cache))}, room for {capacity} new tokens "
        "included",
        "load": format_seconds(load_s),
        "compile": format_seconds(max(0.0, first_s - whole_s)),
        "prefill": format_seconds(prefill_s),
        "decode": f"{format_seconds(decode_s)}, {count} token{'s' * (count != 1)}",
    }
    print()
    for name, fact in facts.items():
        if fact:
            print(f"{name:<15}{fact}")
    if flags.picture:
        seen = llava.views(**inputs.named)
        images_seen = [checkpoint.seen(view.pixels) for view in seen]
        pictures.save(pictures.draw(pictures.views_of(seen, images_seen, prompt, prefilled)), flags.picture)
        print(f"{'picture':<15}{flags.picture}")


def _media(flags: argparse.Namespace) -> tuple[list[Image.Image], list[Clip]]:
    """The images or the video that flags name."""
    return [open_image(path) for path in flags.image], [open_video(path, flags.frames) for path in flags.video]


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def questions(lines: Iterable[str]) -> Iterator[str]:
    """What is asked, line by line, until "exit" or the end; blank lines do not count. Terminals get a prompt."""
    stream, show = iter(lines), getattr(lines, "isatty", lambda: False)()
    while True:
        if show:
            print("> ", end="", file=sys.stderr, flush=True)
        line = next(stream, None)
        if line is None or line.strip().lower() == "exit":
            return
        if line.strip():
            yield line.strip()


def _chat(flags: argparse.Namespace, carve: Carve) -> None:
    """Answer line by line what standard input asks.

    Raises:
      CommandError: an image cannot be read, or the model not be carved like that.
    """
    images, videos = _media(flags)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused by itself
    conversation = Conversation(_load(flags), images, videos=videos, carve=carve, max_new_tokens=flags.max_new_tokens)
    cli.note_images(flags.model, [image.size for image in images])
    try:
        for question in questions(sys.stdin):
            try:
                for piece in conversation.ask(question):
                    print(piece, end="", flush=True)
                print(flush=True)
            except (CommandError, ConfigError) as error:  # the line is refused; the conversation goes on
                print(cli.one_line(error), file=sys.stderr, flush=True)
    except ValueError as error:
        raise CommandError(str(error)) from error


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
        raise CommandError(f"--picture {path}: {above} is not a folder that can be written to")


def _frames(text: str) -> int:
    """Read `--frames`."""
    if not (text.isdecimal() and 2 <= int(text) <= MOST_FRAMES):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames from 2 to {MOST_FRAMES}")
    return int(text)


def _run(flags: argparse.Namespace) -> None:
    carve = schedules.read(flags.schedule) if flags.schedule else flags.keep
    if flags.method:
        if flags.keep is None:
            raise CommandError("--method needs --keep, such as --keep=128; a schedule names methods by itself")
        compressor = methods.find(flags.method)
        carve = ((methods.usual_place(compressor), compressor, flags.keep),)
    if flags.chat and flags.picture:
        raise CommandError("--picture goes with --prompt, not with --chat")
    if flags.picture:
        _check_picture(flags.picture, carve)
    (_chat if flags.chat else _generate)(flags, carve)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, answer, and print what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.generate", description=__doc__, epilog=_EXAMPLES)
    media = parser.add_mutually_exclusive_group(required=True)
    media.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what is asked about; give it several times for several images",
    )
    media.add_argument(
        "--video",
        type=Path,
        action="append",
        default=[],
        metavar="FILE|FOLDER",
        help="the same, a video: a file (needs PyAV: pip install 'av>=14'), or a folder with its frames as images",
    )
    parser.add_argument(
        "--frames",
        type=_frames,
        default=32,
        metavar="COUNT",
        help="of a video, at even distances; all where it has fewer (default: %(default)s)",
    )
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--prompt", metavar="TEXT", help="what to ask; the checkpoint's chat template is added")
    question.add_argument(
        "--chat", action="store_true", help='hold a conversation: ask line by line, and end it with "exit"'
    )
    carve = parser.add_mutually_exclusive_group()
    cli.add_keep_flag(carve, default=None)
    schedules.add_flag(carve, several=False)
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="what leaves KEEP tokens, where it is meant to work: a registered name, or your own, as "
        "package.module:object or path/to/file.py:object (default: tokencarve)",
    )
    cli.add_model_flags(parser)
    cli.add_clip_flags(parser)
    preprocessing.add_aspect_ratio_flag(parser, default="checkpoint")
    cli.add_answer_flag(parser)
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write a picture of which patches were kept, merged and dropped"
    )
    return cli.run(_run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
