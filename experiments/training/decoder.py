"""Teach projector and decoder to answer, many questions on one image at a time.

Visual tokens are the same whatever is asked, so each image goes through the layers once and Q questions attend to its
keys and values, each to itself and to the image only: exactly the computation of Q separate prompts, for a fraction
of the price.

Axis letters: B batch, N visual tokens, P = prefix + N, Q questions, T tokens of a question, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from experiments.data.scenes import GRID
from experiments.training.pool import IGNORE, NUM_PATCHES, Pool, QuestionTokens, choose_patches
from experiments.training.stages import Stage
from experiments.training.tower import normalise_patches, place_losses
from models.engine.loop import Flow, run_layers
from models.families.llava import Projector
from models.io.writing import replacing
from models.nn.clip import ClipVisionTower
from models.nn.llama import Decoder


class Answerer(nnx.Module):
    """What is trained, and a head that is dropped after training."""

    def __init__(self, projector: Projector, decoder: Decoder, *, rngs: nnx.Rngs):
        self.projector = projector
        self.decoder = decoder
        self.place_head = nnx.Linear(decoder.config.hidden_size, 2 * GRID, rngs=rngs)


def _attend_two(query: jax.Array, image: tuple[jax.Array, jax.Array], own: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Causal attention of each question over the image's keys and its own.

    `query` is [B, Q, T, H, d], keys and values are [B, P, G, d] of the image and [B, Q, T, G, d] of the questions; the
    result is [B, Q * T, H * d].
    """
    batch, questions, length, heads, width = query.shape
    groups = own[0].shape[3]
    # Heads move to the front, so that each product is one plain batched matrix product.
    query = query.reshape(batch, questions, length, groups, -1, width).transpose(0, 3, 1, 4, 2, 5) * width**-0.5
    image_key, image_value = (x.transpose(0, 2, 1, 3) for x in image)  # [B, G, P, d]
    own_key, own_value = (x.transpose(0, 3, 1, 2, 4) for x in own)  # [B, G, Q, T, d]
    flat = (batch, groups, -1, width)
    far = (query.reshape(flat) @ image_key.mT).reshape(*query.shape[:-1], -1)
    near = query @ own_key.mT[:, :, :, None]
    near = jnp.where(jnp.tril(jnp.ones((length, length), bool)), near, jnp.finfo(near.dtype).min)
    peak = jax.lax.stop_gradient(jnp.maximum(far.max(-1), near.max(-1))[..., None])
    far, near = jnp.exp(far - peak), jnp.exp(near - peak)
    total = far.sum(-1, keepdims=True) + near.sum(-1, keepdims=True)
    seen = (far.reshape(batch, groups, -1, far.shape[-1]) @ image_value).reshape(query.shape)
    out = (seen + near @ own_value[:, :, :, None]) / total
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(batch, questions * length, heads * width)


def answer_logits(
    model: Any, features: jax.Array, positions: jax.Array, end: jax.Array, prefix: jax.Array, ids: jax.Array
) -> jax.Array:
    """Logits of every question's tokens.

    Args:
      model: with a projector and a decoder.
      features: [B, N, tower width].
      positions: [B, N] int32 of each feature behind the prefix: its raster index, or another where they are renumbered.
      end: [B] int32, the first position behind the visual tokens, where the questions begin.
      prefix: [p] int32 ids before the image.
      ids: [B, Q, T] int32.

    Returns:
      [B, Q, T, V] float32.
    """
    decoder, (batch, questions, length), before = model.decoder, ids.shape, prefix.shape[0]
    head = jnp.broadcast_to(decoder.embed_tokens(prefix), (batch, before, decoder.config.hidden_size))
    text = decoder.embed_tokens(ids.reshape(batch, -1))
    hidden = jnp.concatenate([head, model.projector(features), text], axis=1)
    lead = jnp.broadcast_to(jnp.arange(before), (batch, before))
    behind = jnp.tile(before + end[:, None] + jnp.arange(length), (1, questions))
    places = jnp.concatenate([lead, before + positions, behind], axis=1)[..., None]
    flow = _Questions(decoder, places, jnp.full(batch, hidden.shape[1]), questions=questions, length=length)
    text = run_layers(decoder.layers, hidden, flow)[:, -questions * length :]
    return decoder.logits(text).reshape(batch, questions, length, -1)


class _Questions(Flow):
    """A flow of one image followed by several questions about it, which do not see each other."""

    def __init__(self, decoder: Decoder, positions: jax.Array, lengths: jax.Array, *, questions: int, length: int):
        super().__init__(decoder, positions, lengths)
        self.questions, self.length = questions, length

    def attend(self, index: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """The image is causal by itself; each question looks at it and at itself."""
        count = self.questions * self.length
        image, own = ([x[:, part] for x in (query, key, value)] for part in (slice(-count), slice(-count, None)))
        seen = super().attend(index, *image)
        split = [x.reshape(len(x), self.questions, self.length, *x.shape[2:]) for x in own]
        asked = _attend_two(split[0], (image[1], image[2]), (split[1], split[2]))
        return jnp.concatenate([seen, asked], axis=1)


def answer_loss(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy on the answers' tokens; accuracies by "token", and of each "answer" as a whole.

    Logits are [B, Q, T, V], targets [B, Q, T] int32, `IGNORE` where no answer stands.
    """
    asked = targets != IGNORE
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    right = (logits.argmax(-1) == targets) | ~asked
    metrics = {"token": (right & asked).sum() / asked.sum(), "answer": right.all(-1).mean()}
    return (losses * asked).sum() / asked.sum(), metrics


def decoder_loss(stage: Stage, model: Answerer, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and accuracies of one batch of `batches`.

    `stage.places` is the weight of the loss on where visual tokens are, read off the projector's output. The first
    questions that a decoder learns do not ask where things are; without this loss the projector drops that by the time
    when others do.
    """
    features, where, positions, end, prefix, ids, targets = batch
    logits = answer_logits(model, features, positions, end, prefix, ids)
    loss, metrics = answer_loss(logits, targets)
    tokens = model.projector(features)
    tokens = tokens * jax.lax.rsqrt(jnp.mean(tokens**2, axis=-1, keepdims=True) + 1e-6)
    row, column = (place for _, place, _ in place_losses(model.place_head(tokens), where))
    return loss + stage.places * (row + column), metrics | {"where": row + column}


def cache_features(tower: ClipVisionTower, pool: Pool, path: Path) -> np.ndarray:
    """The trained tower's features of every scene, [P, N, D] float16, kept on disk."""
    depth = tower.config.num_layers

    @jax.jit
    def features_of(tower: ClipVisionTower, patches: jax.Array) -> jax.Array:
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


COUNTS = (24, 48, 64, 96, 128, 128, 192, 288)
"""Visual tokens that are left in a step with gaps; of those that see all, one in `POOLED` steps sees means."""
POOLED = 12


def gaps(kinds: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Patches that a compressor might leave: [B, N] kinds -> [B, count] ascending, int32.

    A random field decides, rough in some rows (tokens go one by one) and smooth in others (whole regions go); objects
    are favoured in a third of the rows, as by most methods.
    """
    rows = []
    for row in kinds:
        field, radius = rng.random((GRID, GRID)), int(rng.integers(4))
        for axis in (0, 1):
            field = np.mean([np.roll(field, shift, axis) for shift in range(-radius, radius + 1)], axis=0)
        field = field.reshape(-1) / field.std() + (row > 0) * (rng.random() * 4 if rng.random() < 1 / 3 else 0.0)
        rows.append(np.sort(np.argpartition(-field, count - 1)[:count]))
    return np.stack(rows).astype(np.int32)


def pooled(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over 2 x 2 patches: [B, N, D] -> [B, N / 4, D], and the raster index of each mean's first patch."""
    half = GRID // 2
    means = features.reshape(len(features), half, 2, half, 2, -1).mean((2, 4)).reshape(len(features), half * half, -1)
    first = (2 * np.arange(half)[:, None] * GRID + 2 * np.arange(half)).reshape(-1)
    return means, np.broadcast_to(first, means.shape[:2]).astype(np.int32)


def batches(pool: Pool, features: np.ndarray, seed: int, questions: int, stage: Stage) -> Callable[[int], Any]:
    """By step: what `decoder_loss` takes.

    Features float32 [B, N, D], their places and positions [B, N] int32, ends [B], prefix [p], ids and targets int32
    [B, Q, T].
    """
    tokens = QuestionTokens()

    def batch_at(step: int) -> Any:
        rng = np.random.default_rng([seed, stage.patches, stage.steps, step])
        whole = stage.gaps and step % stage.gaps == 0
        index = pool.draw(stage.batch // 2 if whole else stage.batch, rng)
        kinds = pool.labels[index, 0]
        if stage.gaps and not whole:
            where = gaps(kinds, COUNTS[rng.integers(len(COUNTS))], rng)
        else:
            where = choose_patches(kinds, stage.patches, rng).astype(np.int32)
        chosen = np.stack([features[i][w] for i, w in zip(index, where, strict=True)]).astype(np.float32)
        if whole and step % POOLED == 0:
            chosen, where = pooled(chosen)
        positions, end = where, np.full(len(index), NUM_PATCHES, np.int32)
        if stage.gaps:  # half of the rows are renumbered, as by a cut before the decoder
            left = where.shape[1]
            renumbered = rng.random(len(index)) < 0.5
            positions = np.where(renumbered[:, None], np.arange(left, dtype=np.int32), where)
            end = np.where(renumbered, np.int32(left), end)
        begin, short_end = stage.short
        short = begin + (short_end - begin) * step / stage.steps
        count = questions // 2 if stage.turns else questions  # as long as two, and as much work as all
        objects = [pool.objects[i] for i in index]
        ids, targets = tokens.batch(objects, questions=count, short=short, turns=stage.turns, rng=rng)
        return chosen, where, positions, end, tokens.prefix, ids, targets

    return batch_at
