"""Train the small LLaVA that the repository ships, from scratch: `python -m experiments.train`.

Eleven stages, each seeded and resumable: the tower on patches with objects, on where they are, then on whole images;
projector and decoder on visual tokens with objects (short questions, then whole ones, then on), and on all 576; then
the tower, one layer deeper, on what is next to each patch, and the decoder on tokens as compressors leave them. The
result is a folder in Hugging Face format that `transformers.LlavaForConditionalGeneration` loads too.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import contextlib
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from experiments.core import cli
from experiments.core.journal import OtherRunError
from experiments.data.tiny_processor import save_processor
from experiments.training import decoder, tower
from experiments.training.pool import make_pool
from experiments.training.stages import STAGES, claim_folder, run_stage, scaled
from models.errors import CommandError
from models.families.llava import llava_config
from models.io.export import export_safetensors
from models.io.writing import own_folder
from models.llava import Llava

_EXAMPLES = """examples:
  python -m experiments.train                                     about an hour and a half on two CPU cores
  python -m experiments.train --seed=1 --work=runs/b --dest=runs/b/model
  python -m experiments.eval --model=runs/tiny/model              measure what came out
"""


def train(*, work: Path, dest: Path, pool: int, questions: int, seed: int, factor: float) -> None:
    """Run every stage and write the model to `dest`; the arguments are the flags.

    Raises:
      CommandError: the pool is too small for the batches.
      OtherRunError: `work` holds a run with other settings.
      InUseError: another process writes to one of the folders.
    """
    largest = max(stage.batch for stage in STAGES)
    if pool < largest:
        raise CommandError(f"--pool {pool}: a step takes {largest} different scenes; pass at least that many")
    with own_folder(dest):  # what would fail at the end fails now
        pass
    with own_folder(work):
        model = _train(work, pool, questions, seed, factor)
    with own_folder(dest):
        write_model(model, dest)


def _train(work: Path, pool_size: int, questions: int, seed: int, factor: float) -> Llava:
    stages = list(scaled(STAGES, factor))
    claim_folder(work, {"pool": pool_size, "questions": questions, "seed": seed}, stages)
    pool = make_pool(work, pool_size, seed)
    model = new_model(seed)
    late = tower.take_layer(model.vision_tower)
    with (work / "log.jsonl").open("a") as log:
        for part, group in itertools.groupby(enumerate(stages), key=lambda pair: pair[1].part):
            numbered = list(group)
            number, first = numbered[0]
            trained: Any
            if part == "tower":
                if first.near:
                    tower.deepen(model.vision_tower, late, pool.patches[:24])
                trained = tower.TowerWithHeads(model.vision_tower, rngs=nnx.Rngs(seed + 1))
                loss, batches = tower.tower_loss, partial(tower.batches, pool, seed)
            else:
                features = decoder.cache_features(model.vision_tower, pool, work / f"features-{number}.npy")
                trained = decoder.Answerer(model.projector, model.decoder, rngs=nnx.Rngs(seed + 2))
                loss, batches = decoder.decoder_loss, partial(decoder.batches, pool, features, seed, questions)
            for number, stage in numbered:
                trained = run_stage(stage, number, trained, partial(loss, stage), batches(stage), work, log)
            if part == "tower":
                model.vision_tower = trained.tower
            else:
                model.projector, model.decoder = trained.projector, trained.decoder
    return model


def new_model(seed: int) -> Llava:
    """The shipped model's architecture (LLaVA-1.5's geometry, a thousandth of its size) with random weights."""
    from transformers import LlavaConfig

    model = Llava(llava_config(LlavaConfig.from_pretrained(cli.SHIPPED)), rngs=nnx.Rngs(seed))
    table = model.vision_tower.position_embedding
    table[...] = table[...].at[1:].set(0.5 * tower.grid_embedding(24, table.shape[1]))
    return model


def write_model(model: Llava, dest: Path) -> None:
    """Write weights, config, tokenizer and processor in Hugging Face format."""
    from transformers import GenerationConfig, LlavaConfig

    dest.mkdir(parents=True, exist_ok=True)
    export_safetensors(model, type(model).table(model.config), dest)
    LlavaConfig.from_pretrained(cli.SHIPPED).save_pretrained(dest)
    GenerationConfig.from_pretrained(cli.SHIPPED).save_pretrained(dest)
    save_processor(dest)


def _factor(text: str) -> float:
    """Read a number above 0 and up to 1,000."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1000:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1000")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, train, and print what went wrong in one line."""
    parser = cli.Parser(prog="python -m experiments.train", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/tiny"),
        metavar="FOLDER",
        help="scenes, checkpoints and log go here; a run that finds some goes on from them (default: %(default)s)",
    )
    parser.add_argument(
        "--dest",
        type=Path,
        default=Path("runs/tiny/model"),
        metavar="FOLDER",
        help="the trained model goes here (default: %(default)s)",
    )
    parser.add_argument(
        "--pool", type=cli.positive, default=6000, metavar="SCENES", help="training scenes (default: %(default)s)"
    )
    parser.add_argument("--questions", type=cli.positive, default=24, help="per image and step (default: %(default)s)")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of everything that is drawn (default: %(default)s)")
    parser.add_argument(
        "--factor", type=_factor, default=1.0, help="times the steps of every stage; 2 trains twice as long"
    )

    def body(flags: argparse.Namespace) -> None:
        try:
            train(**vars(flags))
        except OtherRunError as error:
            raise CommandError(f"{error}; pass another --work, or delete it") from error
        print(f"The trained model is in {flags.dest}; its curve is {flags.work / 'log.jsonl'}.")

    return cli.run(body, parser, argv, interrupted="interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
