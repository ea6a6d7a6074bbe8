"""Train the small LLaVA that the repository ships, from scratch: `python -m experiments.train`.

Eight stages, each seeded and resumable: the tower on patches with objects, on where they are, then on whole images;
projector and decoder on visual tokens with objects (short questions, then whole ones, then on), and on all 576. The
result is a folder in Hugging Face format that `transformers.LlavaForConditionalGeneration` loads too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from experiments.core import cli
from experiments.core.journal import OtherRunError
from experiments.data.tiny_processor import VOCABULARY, save_processor
from experiments.training.decoder import Answerer, answer_logits, answer_loss, place_loss
from experiments.training.pool import NUM_PATCHES, Pool, QuestionTokens, choose_patches, make_pool
from experiments.training.stages import STAGES, Stage, claim_folder, run_stage, scaled
from experiments.training.tower import TowerWithHeads, grid_embedding, normalise_patches, scene_pairs, tower_loss
from models.errors import CommandError
from models.families.llava import llava_config
from models.io.writing import own_folder, replacing
from models.llava import Llava

QUESTION_WIDTH = 16  # tokens; the longest question with its answer has 15
_EXAMPLES = """examples:
  python -m experiments.train                                     about an hour and a half on two CPU cores
  python -m experiments.train --seed=1 --work=runs/b --dest=runs/b/model
  python -m experiments.eval --model=runs/tiny/model              measure what came out
"""


def hf_config() -> Any:
    """The architecture, as a transformers `LlavaConfig`: LLaVA-1.5's geometry, a thousandth of its size."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
            hidden_act="quick_gelu",
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=-(-len(VOCABULARY) // 32) * 32,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            bos_token_id=VOCABULARY.index("<s>"),
            eos_token_id=VOCABULARY.index("</s>"),
            pad_token_id=VOCABULARY.index("<pad>"),
        ),
        image_token_index=VOCABULARY.index("<image>"),
        image_token_id=VOCABULARY.index("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def tower_batches(pool: Pool, stage: Stage, seed: int) -> Callable[[int], Any]:
    """Batches for `tower_loss`."""

    def batch_at(step: int) -> Any:
        rng = np.random.default_rng([seed, stage.patches, step])
        index = np.sort(rng.choice(len(pool), stage.batch, replace=False))
        labels = pool.labels[index]
        where = choose_patches(labels[:, 0], stage.patches, rng)
        patches = np.stack([pool.patches[i][w] for i, w in zip(index, where, strict=True)])
        seen = np.take_along_axis(labels, where[:, None], axis=2)
        return patches, where.astype(np.int32), seen, scene_pairs(labels)

    return batch_at


def _tower_loss(places: float, model: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    return tower_loss(model, *batch, places=places)


def cache_features(tower: Any, pool: Pool, path: Path) -> np.ndarray:
    """What the trained tower says of every scene, [P, N, D] float16, kept on disk."""
    depth = tower.config.num_layers

    @jax.jit
    def features_of(tower: Any, patches: jax.Array) -> jax.Array:
        x = tower.embed(normalise_patches(patches))
        return tower.encode(x, feature_layers=(depth - 1,)).features[:, 1:].astype(jnp.float16)

    if not path.exists():
        with replacing(path) as part:
            shape = (len(pool), NUM_PATCHES, tower.config.hidden_size)
            out = np.lib.format.open_memmap(part, "w+", np.float16, shape)
            for start in tqdm(range(0, len(pool), 64), "features"):
                out[start : start + 64] = features_of(tower, pool.patches[start : start + 64])
            out.flush()
    return np.load(path, mmap_mode="r")


def decoder_batches(pool: Pool, features: np.ndarray, stage: Stage, seed: int, questions: int) -> Callable[[int], Any]:
    """Batches for the decoder's loss: features, their places, prefix, ids and targets."""
    tokens = QuestionTokens()

    def batch_at(step: int) -> Any:
        rng = np.random.default_rng([seed, stage.patches, stage.steps, step])
        index = np.sort(rng.choice(len(pool), stage.batch, replace=False))
        where = choose_patches(pool.labels[index, 0], stage.patches, rng)
        seen = np.stack([features[i][w] for i, w in zip(index, where, strict=True)]).astype(np.float32)
        begin, end = stage.short
        short = begin + (end - begin) * step / stage.steps
        ids, targets = tokens.batch(
            [pool.objects[i] for i in index], questions=questions, width=QUESTION_WIDTH, short=short, rng=rng
        )
        return seen, where.astype(np.int32), tokens.prefix, ids, targets

    return batch_at


def decoder_loss(places: float, model: Answerer, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and accuracies of one batch; `places` is the weight of the loss on where visual tokens are."""
    features, where, prefix, ids, targets = batch
    logits = answer_logits(model.projector, model.decoder, features, where, prefix, ids, num_visual=NUM_PATCHES)
    loss, metrics = answer_loss(logits, targets)
    where_loss = place_loss(model, features, where)
    return loss + places * where_loss, metrics | {"where": where_loss}


def train(*, work: Path, dest: Path, pool_size: int, questions: int, seed: int, factor: float) -> None:
    """Run every stage and write the model to `dest`.

    Raises:
      CommandError: the pool is too small for the batches.
      OtherRunError: `work` holds a run with other settings.
      InUseError: another process writes to one of the folders.
    """
    largest = max(stage.batch for stage in STAGES)
    if pool_size < largest:
        raise CommandError(f"--pool {pool_size}: a step takes {largest} different scenes; pass at least that many")
    with own_folder(work):
        model = _train(work, pool_size, questions, seed, factor)
    with own_folder(dest):
        write_model(model, hf_config(), dest)


def _train(work: Path, pool_size: int, questions: int, seed: int, factor: float) -> Llava:
    stages = list(scaled(STAGES, factor))
    claim_folder(work, {"pool": pool_size, "questions": questions, "seed": seed}, stages)
    pool = make_pool(work, pool_size, seed)
    model = Llava(llava_config(hf_config()), rngs=nnx.Rngs(seed))
    table = model.vision_tower.position_embedding
    table[...] = table[...].at[1:].set(0.5 * grid_embedding(24, table.shape[1]))
    tower = TowerWithHeads(model.vision_tower, rngs=nnx.Rngs(seed + 1))
    with (work / "log.jsonl").open("a") as log:
        for number, stage in enumerate(stages):
            if stage.part == "tower":
                batches = tower_batches(pool, stage, seed)
                tower = run_stage(stage, number, tower, partial(_tower_loss, stage.places), batches, work, log)
        model.vision_tower = tower.tower
        features = cache_features(model.vision_tower, pool, work / "features.npy")
        answerer = Answerer(model.projector, model.decoder, rngs=nnx.Rngs(seed + 2))
        for number, stage in enumerate(stages):
            if stage.part == "decoder":
                batches = decoder_batches(pool, features, stage, seed, questions)
                answerer = run_stage(stage, number, answerer, partial(decoder_loss, stage.places), batches, work, log)
    model.projector, model.decoder = answerer.projector, answerer.decoder
    return model


def write_model(model: Llava, config: Any, dest: Path) -> None:
    """Write weights, config, tokenizer and processor in Hugging Face format."""
    from transformers import GenerationConfig

    from models.io.export import export_safetensors

    dest.mkdir(parents=True, exist_ok=True)
    export_safetensors(model, type(model).table(model.config), dest)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(dest)
    text = config.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    ).save_pretrained(dest)
    save_processor(dest)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, train, and say what went wrong in one line."""
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
        "--factor", type=float, default=1.0, help="times the steps of every stage; 2 trains twice as long"
    )

    def body(flags: argparse.Namespace) -> None:
        try:
            train(
                work=flags.work,
                dest=flags.dest,
                pool_size=flags.pool,
                questions=flags.questions,
                seed=flags.seed,
                factor=flags.factor,
            )
        except OtherRunError as error:
            raise CommandError(f"{error}; pass another --work, or delete it") from error
        print(f"The trained model is in {flags.dest}; its curve is {flags.work / 'log.jsonl'}.")

    return cli.run(body, parser, argv, interrupted="interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
