"""Time the prefill of a video, carved and not, in turns, and count its KV cache, on a small Qwen2.5-VL.

The model has random weights and the real structure: patches of 14 x 14 x 2, four to a visual token, windows, M-RoPE;
speed does not depend on what the weights are. Prefill is all that comes before the first token, the tower too, whose
time no cut behind it saves: how many times faster the rest is stands beside it. The cache is counted twice, as in
`experiments.bench`: the slots of the prompt, and all that is allocated, with room for 32 new tokens. Prompts are padded
as `generate` pads them: slots to a multiple of 16, visual tokens to one of 64. Writes results.json.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import functools
import sys
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from experiments.core import cli, methods, results
from experiments.metrics.latency import ratios, summary, timed
from experiments.speed.presets import PRESETS, random_model
from models.engine.prefill import Prefilled
from models.engine.prompt import Prompt
from models.engine.visual import TowerRequest
from models.errors import CommandError
from models.families.qwen2_5_vl import Qwen25VL, QwenVLConfig
from models.nn.qwen_vision import QwenVisionConfig

_LLAVA = PRESETS["small"]
_SYSTEM, _QUESTION, _NEW = 15, 25, 32  # tokens before the video, behind it, and to come
_HEADER = (
    "method",
    "visual tokens",
    "prefill ms",
    "times faster",
    "tower apart",
    "slots",
    "KV cache",
    "share",
    "and room",
)
_EXAMPLES = """examples:
  python -m experiments.studies.video_prefill                            32 frames of 448 x 224, a tenth kept
  python -m experiments.studies.video_prefill --size 224x140 --methods evs tokencarve
"""
CONFIG = QwenVLConfig(
    vision=QwenVisionConfig(
        hidden_size=256,
        intermediate_size=704,
        num_layers=6,
        num_heads=4,
        num_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        window_units=4,
        full_blocks=(2, 5),
        activation="silu",
        rope_theta=10000.0,
        out_hidden_size=_LLAVA.text.hidden_size,
        tokens_per_second=2,
    ),
    text=_LLAVA.text.__class__(**{**vars(_LLAVA.text), "rope_sections": (8, 12, 12), "max_positions": 32768}),
    image_token_id=_LLAVA.image_token_id,
    video_token_id=_LLAVA.image_token_id + 1,
    eos_token_ids=(),
    pad_token_id=_LLAVA.pad_token_id,
)


def _size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT in pixels, multiples of 28."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()) or min(sides := (int(width), int(height))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 448x224")
    if any(side % 28 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: width and height are multiples of 28, as the processor makes them")
    return sides


def prompt_of(model: Qwen25VL, frames: int, size: tuple[int, int]) -> Prompt:
    """A packed question about a video of random pixels."""
    vision, rng = model.config.vision, np.random.default_rng(0)
    grid = (-(-frames // vision.temporal_patch_size), *(side // vision.patch_size for side in reversed(size)))
    words = rng.integers(3, 30000, _SYSTEM + _QUESTION)
    count = int(np.prod(grid)) // vision.merge_size**2
    ids = [*words[:_SYSTEM], *[model.config.video_token_id] * count, *words[_SYSTEM:]]
    patches = rng.standard_normal((int(np.prod(grid)), vision.patch_width), np.float32)
    return jax.device_put(model.prompt([ids], pixel_values_videos=patches, video_grid_thw=[grid]))


def _cache(prefilled: Prefilled) -> dict[str, int]:
    """Slots of the prompt, bytes of their keys and values, and bytes of all that is allocated."""
    (segment,) = prefilled.cache.segments
    slots, allocated = int(segment.slot), prefilled.cache.nbytes
    return {"slots": slots, "prompt": allocated * slots // segment.valid.shape[1], "allocated": allocated}


def measure(flags: argparse.Namespace, *, command: Sequence[str]) -> None:
    """Time in turns, print the table and write results.json.

    Raises:
      CommandError: a method cannot be used there; says why.
    """
    path = results.claim(flags.out, "video-prefill")
    model = random_model(Qwen25VL, CONFIG, jax.numpy.float32)
    prompt = prompt_of(model, flags.frames, flags.size)
    chosen = {name: methods.find(name) for name in flags.methods}
    carves = {name: ((methods.usual_place(method), method, flags.keep),) for name, method in chosen.items()}
    prefills = {
        name: functools.partial(model.prefill, prompt, carve=carve, decode_capacity=_NEW)
        for name, carve in {**carves, "uncarved": None}.items()
    }
    try:
        cache = {name: _cache(prefill()) for name, prefill in prefills.items()}
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
    tower = jax.jit(lambda model, pixels: model.visual(pixels, TowerRequest()).tokens)
    seconds = {name: list[float]() for name in ("tower", *prefills)}
    timed(lambda: tower(model, prompt.pixel_values))
    for _ in tqdm(range(flags.repeats), desc="rounds", file=sys.stderr, disable=None):
        seconds["tower"].append(timed(lambda: tower(model, prompt.pixel_values))[1])
        for name, prefill in prefills.items():
            seconds[name].append(timed(prefill)[1])

    def behind(name: str) -> list[float]:
        """Seconds without the tower's, round by round."""
        return [max(own - alone, 1e-6) for own, alone in zip(seconds[name], seconds["tower"], strict=True)]

    whole, rows = cache["uncarved"], []
    for name, own in cache.items():
        pairs = [(seconds["uncarved"], seconds[name]), (behind("uncarved"), behind(name))]
        faster = [f"{ratios(*pair)['median']:.2f}" for pair in pairs]
        shares = [f"{100 * own[kind] / whole[kind]:.1f} %" for kind in ("prompt", "allocated")]
        left = int(prompt.visual_valid.sum()) - whole["slots"] + own["slots"]
        times = f"{1e3 * summary(seconds[name])['median']:.0f}"
        held = results.format_bytes(own["prompt"])
        rows.append([name, str(left), times, *faster, str(own["slots"]), held, *shares])
    (width, height), machine = flags.size, results.machine()
    print(f"{flags.frames} frames of {width} x {height}, keep={flags.keep}, on {machine['cores']} cores;", end=" ")
    print(f"the tower alone takes {1e3 * summary(seconds['tower'])['median']:.0f} ms\n")
    print(results.format_table(_HEADER, rows))
    results.write_study(path, "video-prefill", command, vars(flags), cache=cache, seconds=seconds)
    print(f"\nEvery time: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure, and print what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.studies.video_prefill", description=__doc__, epilog=_EXAMPLES)
    cli.add_keep_flag(parser, default=0.1)
    parser.add_argument("--frames", type=cli.positive, default=32, metavar="COUNT", help="(default: %(default)s)")
    parser.add_argument(
        "--size", type=_size, default=(448, 224), metavar="WIDTHxHEIGHT", help="of a frame (default: 448x224)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["evs", "vidcom2", "tokencarve"],
        metavar="NAME",
        help="where each is meant to work (default: evs vidcom2 tokencarve)",
    )
    parser.add_argument(
        "--repeats",
        type=cli.positive,
        default=5,
        metavar="COUNT",
        help="how often all are timed, by turns (default: %(default)s)",
    )
    cli.add_out_flag(parser, "results/video_prefill")
    command = ["python", "-m", "experiments.studies.video_prefill", *argv]
    return cli.run(lambda flags: measure(flags, command=command), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
