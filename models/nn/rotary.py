"""Rotary position embedding, for positions with one axis or several.

Axis letters: B batch, S sequence, H heads, d head width, A axes of a position.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Rotation = tuple[jax.Array, jax.Array]  # cosine and sine, each [B, S, d/2] float32


def _axes(sections: tuple[int, ...], *, interleaved: bool) -> np.ndarray:
    """The axis that each wavelength follows, the shortest first: one axis after the other, or in turn.

    >>> _axes((4, 2, 1), interleaved=False).tolist(), _axes((4, 2, 1), interleaved=True).tolist()
    ([0, 0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 0, 0])
    """
    axis = np.repeat(np.arange(len(sections)), sections)
    if interleaved:  # the first axis has every turn that no other takes
        axis[:] = 0
        for index, count in enumerate(sections[1:], 1):
            axis[index : count * len(sections) : len(sections)] = index
    return axis


def rotation(
    positions: jax.Array, *, head_dim: int, theta: float, factor: float, sections: tuple[int, ...], interleaved: bool
) -> Rotation:
    """Rotary angles of the given positions (RoFormer, arXiv 2104.09864; `factor` as in linear scaling).

    Args:
      positions: [B, S, A] int32.
      head_dim: d, even.
      theta: base of the geometric series of wavelengths.
      factor: divides positions.
      sections: how many of the d/2 wavelengths follow each axis of the positions (M-RoPE, arXiv 2409.12191). With one
        axis, all of them.
      interleaved: axes take turns (Qwen3-VL, arXiv 2511.21631); otherwise the wavelengths of each stand together.

    Returns:
      Cosine and sine, [B, S, d/2] float32.

    Raises:
      ValueError: there are not as many sections as axes, or they do not add up to d/2 or interleave.
    """
    axis = _axes(sections, interleaved=interleaved)
    found = np.bincount(axis, minlength=len(sections)).tolist()
    if len(axis) != head_dim // 2 or len(sections) != positions.shape[-1] or found != list(sections):
        raise ValueError(
            f"{len(sections)} sections of {sections} wavelengths do not fit positions with {positions.shape[-1]} axes "
            f"and heads of width {head_dim}"
        )
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim) / factor
    angle = jnp.take(positions, axis, axis=-1).astype(jnp.float32) * frequency[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def agreement(query: Rotation, key: Rotation) -> jax.Array:
    """The mean over wavelengths of the cosine of the angle between two positions: [B, S, T] float32, 1 at the same."""
    ours, theirs = (jnp.concatenate(by, axis=-1) for by in (query, key))
    return jnp.einsum("bsc,btc->bst", ours, theirs, precision=jax.lax.Precision.HIGHEST) * 2 / ours.shape[-1]


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Rotate pairs (i, i + d/2) of each head of x [B, S, H, d], Hugging Face's layout; in float32, in x's dtype."""
    cos, sin = (part[:, :, None, :] for part in by)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
