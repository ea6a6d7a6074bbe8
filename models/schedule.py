"""Where a decoder shortens its sequence, by which method, to how many visual tokens.

A schedule is a tuple of cuts `(layer, method, keep)`. The cut happens at the entry of `layer` (0-based), on the output
of `layer - 1` and with that layer's attention. Methods are registered by name, so that a schedule is hashable and can
be a static argument of a compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

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
_METHODS: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Decorator that makes a compressor available to schedules under `name`.

    The function is traced inside the compiled prefill: it takes `(hidden [B, S, D], attention [B, S] float32,
    visual_positions [B, N] int32, *, keep: int, valid: [B, N] bool, key: PRNG key)` and returns a
    `tokencarve_jax.CarvedSequence`. `attention` is the last prompt token's head-mean softmax row in the layer before.

    Raises:
      ValueError: the name is taken. Programs compiled for it would go on with the old function.
    """

    def add(method: Method) -> Method:
        if name in _METHODS:
            raise ValueError(f"a method named {name!r} is registered already; choose another name")
        _METHODS[name] = method
        return method

    return add


def method(name: str) -> Method:
    """The registered method of that name."""
    return _METHODS[name]


def methods() -> tuple[str, ...]:
    """Names that a schedule may use."""
    return tuple(sorted(_METHODS))


@register("tokencarve")
def _tokencarve(
    hidden: jax.Array,
    attention: jax.Array,
    visual_positions: jax.Array,
    *,
    keep: int,
    valid: jax.Array,
    key: jax.Array,
) -> CarvedSequence:
    del key
    return carve_sequence(hidden, attention, visual_positions, keep=keep, valid=valid)


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


def resolve(schedule: Schedule, num_visual: int) -> Schedule:
    """Turn every keep into a count. Fractions are of `num_visual`, the tokens before the first cut.

    Cuts that keep everything are dropped: they are the identity.

    Raises:
      ValueError: a cut that keeps more than the one before it left, or more than there are.
    """
    left, cuts = num_visual, []
    for cut in schedule if num_visual else ():  # a prompt without images has nothing to cut
        kept = plan(num_visual, cut.keep).kept
        if kept > left:
            raise ValueError(f"cut {tuple(cut)!r} keeps {kept} visual tokens, but only {left} are left at that layer")
        if kept < left:
            cuts.append(cut._replace(keep=kept))
            left = kept
    return tuple(cuts)
