"""Where a decoder shortens its sequence, by which method, to how many visual tokens.

A schedule is a tuple of cuts `(layer, method, keep)`. The cut happens at the entry of `layer` (0-based), on the output
of `layer - 1` and with that layer's attention. Methods are registered by name, so that a schedule is hashable and can
be a static argument of a compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tokencarve_jax import CarvedSequence, carve_sequence, plan

TOKENCARVE_LAYER = 2  # the paper's choice for LLaVA-1.5, as in its released code


class Cut(NamedTuple):
    """One shortening: at the entry of `layer`, `method` leaves `keep` visual tokens (a count, or a fraction)."""

    layer: int
    method: str
    keep: int | float


Schedule = tuple[Cut, ...]
Carve = None | int | float | tuple[tuple[int, str, int | float], ...]

# fn(hidden [B, S, D], attention [B, S], visual_positions [B, N], *, keep, valid [B, N], key) -> CarvedSequence
Method = Callable[..., CarvedSequence]


class _Registered(NamedTuple):
    function: Method
    per_image: bool
    attention_output: bool


_METHODS: dict[str, _Registered] = {}


def register(name: str, *, per_image: bool = False, attention_output: bool = False) -> Callable[[Method], Method]:
    """Decorator that makes a compressor available to schedules under `name`.

    The function is traced inside the compiled prefill: it takes `(hidden [B, S, D], attention [B, S] float32,
    visual_positions [B, N] int32, *, keep: int, valid: [B, N] bool, key: PRNG key)` and returns a
    `tokencarve_jax.CarvedSequence`. `attention` is the last prompt token's head-mean softmax row in the layer before.

    Args:
      name: what schedules call it.
      per_image: it has a budget for each image: `visual_positions` and `valid` come as [B, I, N], N of the longest
        image, and `keep` counts each image's survivors.
      attention_output: it also takes `attention_output`, [B, S, D]: what attention in the layer before adds to the
        residual stream, heads merged and projected.

    Raises:
      ValueError: the name is taken. Programs compiled for it would go on with the old function.
    """

    def add(method: Method) -> Method:
        if name in _METHODS:
            raise ValueError(f"a method named {name!r} is registered already; choose another name")
        _METHODS[name] = _Registered(method, per_image, attention_output)
        return method

    return add


def apply(
    cut: Cut,
    hidden: jax.Array,
    attention: jax.Array,
    visual_positions: jax.Array,
    *,
    attention_output: jax.Array,
    images: int | None,
    valid: jax.Array,
    key: jax.Array,
) -> CarvedSequence:
    """Run a cut's method.

    Args:
      cut: with a count, as `resolve` gives.
      hidden: [B, S, D].
      attention: [B, S].
      visual_positions: [B, N].
      attention_output: [B, S, D]; only read where the method asks for it.
      images: stretches of the N, see `resolve`; only read where the method has a budget for each.
      valid: [B, N].
      key: PRNG key.

    Returns:
      The carved sequence, `indices` [B, K] and `assignment` [B, N] whatever the method.
    """
    method, per_image, reads_output = _METHODS[cut.method]
    if reads_output:
        method = functools.partial(method, attention_output=attention_output)
    if not per_image:
        return method(hidden, attention, visual_positions, keep=cut.keep, valid=valid, key=key)
    batch = visual_positions.shape[0]
    visual_positions, valid = (x.reshape(batch, images, -1) for x in (visual_positions, valid))
    carved = method(hidden, attention, visual_positions, keep=cut.keep, valid=valid, key=key)
    before = jnp.arange(visual_positions.shape[1], dtype=jnp.int32)[:, None]  # images before this one
    indices = carved.indices + before * visual_positions.shape[2]
    assignment = jnp.where(carved.assignment < 0, -1, carved.assignment + before * int(cut.keep))
    return dataclasses.replace(carved, indices=indices.reshape(batch, -1), assignment=assignment.reshape(batch, -1))


def methods() -> tuple[str, ...]:
    """Names that a schedule may use."""
    return tuple(sorted(_METHODS))


@register("tokencarve")
def tokencarve(
    hidden: jax.Array,
    attention: jax.Array,
    visual_positions: jax.Array,
    *,
    keep: int,
    valid: jax.Array,
    key: jax.Array,
    attention_output: jax.Array | None = None,
    **options: Any,
) -> CarvedSequence:
    """`carve_sequence` as a method; with other `options` of its, register it under a name of your own.

    Where `attention_output` is given, the information score is of that and not of the hidden state.
    """
    del key
    return carve_sequence(
        hidden, attention, visual_positions, keep=keep, valid=valid, features=attention_output, **options
    )


def is_per_image(name: str) -> bool:
    """Whether that method has a budget for each image."""
    return _METHODS[name].per_image


register("tokencarve-per-image", per_image=True)(tokencarve)


@register("random")
def _random(
    hidden: jax.Array,
    attention: jax.Array,
    visual_positions: jax.Array,
    *,
    keep: int,
    valid: jax.Array,
    key: jax.Array,
) -> CarvedSequence:
    """K tokens at random: the control that any method has to beat."""
    lottery = jax.random.uniform(key, attention.shape)
    prune_only = functools.partial(carve_sequence, attention_weight=1.0, oversample=1.0)
    return prune_only(hidden, lottery, visual_positions, keep=keep, valid=valid)


def parse(carve: Carve, *, num_layers: int) -> Schedule:
    """Check what a user asked for.

    Args:
      carve: None (no cut), a keep (TokenCarve at layer 2), or a tuple of `(layer, method, keep)`.
      num_layers: of the decoder.

    Returns:
      Cuts in ascending order of layer.

    Raises:
      ValueError, TypeError: what was wrong with it, what was expected.
    """
    if carve is None:
        return ()
    if isinstance(carve, (int, float)) and not isinstance(carve, bool):
        carve = ((TOKENCARVE_LAYER, "tokencarve", carve),)
    if not isinstance(carve, (tuple, list)):
        raise TypeError(
            f"carve is {carve!r}; expected None, a keep such as 0.222 or 128, or ((layer, method, keep), ...)"
        )
    cuts = []
    for cut in carve:
        if not isinstance(cut, (tuple, list)) or len(cut) != 3:
            raise TypeError(f"a cut of the schedule is {cut!r}; expected (layer, method, keep)")
        layer, name, keep = cut
        if isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer < num_layers:
            raise ValueError(f"cut {cut!r}: layer must be an integer from 1 to {num_layers - 1}, the decoder's last")
        if name not in _METHODS:
            raise ValueError(f"cut {cut!r}: unknown method {name!r}; registered are {', '.join(methods())}")
        if isinstance(keep, float):
            plan(1, keep)  # a fraction is checked before the number of visual tokens is known
        elif isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"cut {cut!r}: keep must be a fraction in (0, 1] or a count of at least 1")
        cuts.append(Cut(layer, name, keep))
    layers = [cut.layer for cut in cuts]
    if sorted(set(layers)) != layers:
        raise ValueError(f"layers of the cuts are {layers}; expected each layer once, in ascending order")
    return tuple(cuts)


def resolve(schedule: Schedule, num_visual: int, *, images: int | None = 1) -> Schedule:
    """Turn every keep into a count. Fractions are of `num_visual`, the tokens before the first cut.

    Cuts that keep everything are dropped: they are the identity.

    Args:
      schedule: from `parse`.
      num_visual: N, visual tokens of a row, all images together.
      images: stretches of equal length that the N are, one per image (`Prompt.images`). A method with budgets per
        image keeps its share of each.

    Raises:
      ValueError: a cut that keeps more than the one before it left, or more than there are, or one with budgets per
        image where it is no longer known which token is of which image.
    """
    left, cuts = num_visual, []
    for cut in schedule if num_visual else ():  # a prompt without images has nothing to cut
        parts = 1
        if is_per_image(cut.method):
            if images is None:
                raise ValueError(
                    f"cut {tuple(cut)!r} has a budget for each image, but the tokens of a row's images stand together; "
                    "pack the prompt with per_image=True, and put no cut with a joint budget before this one"
                )
            parts = images
        kept = plan(num_visual // parts, cut.keep).kept
        if kept * parts > left:
            raise ValueError(
                f"cut {tuple(cut)!r} keeps {kept * parts} visual tokens, but only {left} are left at that layer"
            )
        if kept * parts < left:
            cuts.append(cut._replace(keep=kept))
            left = kept * parts
            images = images if parts == images else None
    return tuple(cuts)
