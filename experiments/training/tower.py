"""Teach the tower what its patches show, so that the decoder has features to read.

The features that the decoder will get (the last layer but one, as in LLaVA) are trained by a label per patch, and the
class token of the last layer by what the scene contains, as CLIP trains its own by the caption. Early steps see only
the patches with objects and some background, at their true positions: a twentieth of the attention's work.

Axis letters: B batch, N patches, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from experiments.data.scenes import COLOURS, GRID, LABEL_CLASSES, SHAPES, Labels
from experiments.training.pool import NEAR_CLASSES, Pool, choose_patches, near_objects
from experiments.training.stages import Stage
from models.nn.clip import ClipVisionTower, EncoderLayer

PAIRS = len(COLOURS) * len(SHAPES)


class TowerWithHeads(nnx.Module):
    """The tower, and linear heads that are dropped after training."""

    def __init__(self, tower: ClipVisionTower, *, rngs: nnx.Rngs):
        width = tower.config.hidden_size
        self.tower = tower
        self.patch_head = nnx.Linear(width, sum(LABEL_CLASSES.values()), rngs=rngs)
        self.scene_head = nnx.Linear(width, PAIRS, rngs=rngs)
        self.place_head = nnx.Linear(width, 2 * GRID, rngs=rngs)
        self.near_head = nnx.Linear(width, sum(NEAR_CLASSES), rngs=rngs)


def grid_embedding(grid: int, width: int) -> np.ndarray:
    """Sines and cosines of row and column, [grid * grid, width]: a start from which neighbours are easy to find."""
    frequency = 1 / 40.0 ** (np.arange(width // 4) / (width // 4)) * 1.5
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    angles = np.concatenate([rows[:, None] * frequency, columns[:, None] * frequency], 1)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def take_layer(tower: ClipVisionTower) -> EncoderLayer:
    """Take the layer before the last out of a tower, to train the others first; `deepen` puts it back."""
    *first, late, last = tower.layers
    tower.layers = nnx.List([*first, last])
    tower.config = dataclasses.replace(tower.config, num_layers=len(tower.layers))
    return late


def deepen(tower: ClipVisionTower, late: EncoderLayer, patches: np.ndarray) -> None:
    """Put a layer before the last: it starts as the identity, and looks at what is next to each patch.

    Without the second, learning to look around takes longer than all that is learned then. The heads look left, right,
    up and down of each patch: their queries and keys are sines and cosines of row and column, read off the features by
    least squares.

    Args:
      tower: changed in place.
      late: changed in place; random weights.
      patches: uint8 [B, N, 588], whole images.
    """
    depth, size = len(tower.layers), tower.config.hidden_size // tower.config.num_heads
    start = tower.embed(normalise_patches(jnp.asarray(patches)))
    before = tower.encode(start, feature_layers=(depth - 1,)).features[:, 1:]
    x = np.asarray(late.layer_norm1(before), np.float64).reshape(-1, before.shape[-1])
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    gram = x.T @ x + 0.1 * np.eye(x.shape[1])
    frequency, scale = np.geomspace(1.5, 0.3, size // 4), np.sqrt(0.6 * np.sqrt(size))

    def reading(down: float, right: float) -> np.ndarray:
        rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
        angles = np.concatenate([(rows + down)[:, None] * frequency, (columns + right)[:, None] * frequency], axis=1)
        waves = np.tile(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), (len(patches), 1))
        return np.linalg.solve(gram, x.T @ waves) * scale

    sides = (reading(0, -1.5), reading(0, 1.5), reading(-1, 0), reading(1, 0))
    for project, read in ((late.self_attn.q_proj, sides), (late.self_attn.k_proj, [reading(0, 0)] * len(sides))):
        *weight, bias = np.concatenate(read, axis=1).astype(np.float32)
        assert project.bias is not None
        project.weight[...], project.bias[...] = jnp.asarray(np.stack(weight).T), jnp.asarray(bias)
    for added in (late.self_attn.out_proj, late.mlp.fc2):
        nnx.update(added, jax.tree.map(jnp.zeros_like, nnx.state(added)))
    *first, last = tower.layers
    tower.layers = nnx.List([*first, late, last])
    tower.config = dataclasses.replace(tower.config, num_layers=len(tower.layers))


def normalise_patches(patches: jax.Array) -> jax.Array:
    """uint8 [..., 588] -> float32, as the processor normalises pixels."""
    pixels = patches.reshape(*patches.shape[:-1], 3, -1).astype(jnp.float32) / 255
    mean, std = (jnp.asarray(x, jnp.float32)[:, None] for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((pixels - mean) / std).reshape(patches.shape)


def scene_pairs(labels: np.ndarray) -> np.ndarray:
    """Which (colour, shape) pairs occur: labels int8 [B, 6, N] -> float32 [B, 36]."""
    colour, shape = labels[:, Labels._fields.index("colour")], labels[:, Labels._fields.index("shape")]
    pair = np.where(shape > 0, (colour - 1) * len(SHAPES) + shape - 1, PAIRS).astype(np.int64)
    return (pair[:, None, :] == np.arange(PAIRS)[None, :, None]).any(2).astype(np.float32)


def place_losses(logits: jax.Array, where: jax.Array) -> Iterator[tuple[str, jax.Array, jax.Array]]:
    """How well each patch's row and column are known.

    Args:
      logits: [B, N, 2 * GRID], of rows and then of columns.
      where: [B, N] int32, raster index.

    Yields:
      "row" and "column", with cross-entropy and accuracy.
    """
    parts = zip(("row", "column"), jnp.split(logits, 2, axis=-1), jnp.divmod(where, GRID), strict=True)
    for name, prediction, target in parts:
        loss = optax.softmax_cross_entropy_with_integer_labels(prediction, target).mean()
        yield name, loss, jnp.mean(prediction.argmax(-1) == target)


def near_loss(logits: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How well each patch knows the object next to it.

    Every object is then told of by a dozen patches and more, as in large towers, whose features no single patch owns.

    Args:
      logits: [B, N, sum(NEAR_CLASSES)].
      near: int8 [B, 7, N], of `near_objects`.

    Returns:
      Cross-entropy, and the share of patches near objects whose fields are all right.
    """
    close = (near[:, 0] > 0).astype(jnp.float32)
    weight = close / close.sum() + 0.1 * (1 - close) / jnp.maximum((1 - close).sum(), 1)
    loss, right = jnp.zeros(()), jnp.ones(close.shape, bool)
    for index, prediction in enumerate(jnp.split(logits, np.cumsum(NEAR_CLASSES)[:-1], axis=-1)):
        target = near[:, index].astype(jnp.int32)
        loss += (weight * optax.softmax_cross_entropy_with_integer_labels(prediction, target)).sum()
        right &= prediction.argmax(-1) == target
    return loss, (close * right).sum() / close.sum()


def tower_loss(stage: Stage, model: TowerWithHeads, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the patch labels and of the scene's contents.

    Args:
      stage: whose `places` weighs the loss on each patch's row and column, without which the features forget where they
        are, and whose `near` weighs the one on the object next to it.
      model: tower and heads.
      batch: of `batches`.

    Returns:
      The loss, and the accuracy of each label on patches with objects.
    """
    patches, positions, labels, near, pairs = batch
    tower = model.tower
    depth = tower.config.num_layers
    x = tower.embed(normalise_patches(patches), positions)
    both = tower.encode(x, feature_layers=(depth - 1, depth)).features
    features, last = jnp.split(both, 2, axis=-1)
    scene = model.scene_head(tower.post_layernorm(last[:, 0]))
    loss = optax.sigmoid_binary_cross_entropy(scene, pairs).mean()
    logits = jnp.split(model.patch_head(features[:, 1:]), np.cumsum([*LABEL_CLASSES.values()])[:-1], axis=-1)
    shown = (labels[:, 0] > 0).astype(jnp.float32)
    weight = shown / shown.sum() + 0.3 * (1 - shown) / jnp.maximum((1 - shown).sum(), 1)
    metrics = {"scene": jnp.mean((scene > 0) == (pairs > 0))}
    for index, (name, prediction) in enumerate(zip(LABEL_CLASSES, logits, strict=True)):
        target = labels[:, index].astype(jnp.int32)
        loss += (weight * optax.softmax_cross_entropy_with_integer_labels(prediction, target)).sum()
        metrics[name] = (shown * (prediction.argmax(-1) == target)).sum() / shown.sum()
    for name, place, accuracy in place_losses(model.place_head(features[:, 1:]), positions):
        loss += stage.places * place
        metrics[name] = accuracy
    if stage.near:
        near_by, metrics["near"] = near_loss(model.near_head(features[:, 1:]), near)
        loss += stage.near * near_by
    return loss, metrics


def batches(pool: Pool, seed: int, stage: Stage) -> Callable[[int], Any]:
    """By step: patches uint8 [B, N, 588], places [B, N] int32, labels int8 [B, 6, N], near [B, 7, N], pairs [B, 36]."""

    def batch_at(step: int) -> Any:
        rng = np.random.default_rng([seed, stage.patches, step])
        index = pool.draw(stage.batch, rng)
        labels = pool.labels[index]
        near = np.stack([near_objects(pool.objects[i]) for i in index])
        shown = near[:, 0] if stage.near else labels[:, 0]
        where = choose_patches(shown, stage.patches, rng).astype(np.int32)
        patches = np.stack([pool.patches[i][w] for i, w in zip(index, where, strict=True)])
        labels_there, near_there = (np.take_along_axis(x, where[:, None], axis=2) for x in (labels, near))
        return patches, where, labels_there, near_there, scene_pairs(labels)

    return batch_at
