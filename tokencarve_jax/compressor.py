"""The contract that every way to shrink visual tokens keeps: a pure function, its evidence read off its signature."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokencarve_jax.budget import plan
from tokencarve_jax.merging import merge_rest
from tokencarve_jax.promotion import on_any_mesh, usual_promotion
from tokencarve_jax.scores.ranking import USABLE, tiers
from tokencarve_jax.tokens import Compressed, Selection, Tokens, gather

# What a method may ask to be told, and its shape behind the leading dimensions of the tokens.
EVIDENCE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # From the decoder layer before the cut
        "query_attention": ("N",),  # softmax attention of the last text query to each token, mean over heads
        "next_attention": ("N",),  # the same by the layer behind the cut, as if nothing were cut
        "text_attention": ("T", "N"),  # the same of every text token
        "head_attention": ("H", "T", "N"),  # each head's, over what rotary embedding alone would make of the distance
        "keys": ("N", "d"),  # keys after rotary embedding, all heads side by side
        "text_keys": ("T", "d"),
        "text_hidden": ("T", "D"),  # hidden states that enter the layer behind the cut, by the decoder's last norm
        "normed_hidden": ("N", "D"),
        "previous_hidden": ("N", "D"),  # hidden states that enter the layer before the cut
        "attention_output": ("N", "F"),  # what attention adds to the hidden state
        # From the vision tower, one of its layers
        "class_attention": ("N",),  # softmax attention of the class token, mean over heads
        "global_attention": ("N",),  # softmax attention of all tokens, mean over heads and queries
        "middle_attention": ("N",),  # the same as global_attention, of a layer in the tower's middle
        "tower_keys": ("N", "d"),  # keys, mean over heads
        "tower_features": ("N", "C"),  # what goes into the projector
        "projector": (),  # a `jax.tree_util.Partial`, [..., C] -> [..., D]
        # From the question
        "text": ("T", "D"),  # token embeddings of all text tokens
        "text_valid": ("T",),  # bool, True for those behind the image: the question
        "text_relevance": ("T",),  # each one's share of the image at the decoder's input: sparsevlm.word_shares
        "relevance": ("N",),  # to the question, higher is more relevant, by another model (CLIP's text tower)
        "relevance_dot": ("N",),  # the same by dot products, where cosines leave lengths out
        "key": (),  # a PRNG key
    }
)
"""What a method may ask to be told, with the shape of each behind the leading dimensions of the tokens; read-only.

Letters: N tokens, T text tokens, D width, d head width, F and C other widths. Arrays are floating, any dtype, but
`text_valid` (bool) and `key` (a PRNG key); `()` is what has no such shape. A `Compressor` checks what it is given.

Raises:
    KeyError: There is no evidence of that name.

Source: this package's own; what each method asks for is its paper's.

Examples:
    >>> EVIDENCE["query_attention"], EVIDENCE["text"]
    (('N',), ('T', 'D'))
"""
PLACES = ("tower", "input", "decoder")
REST = ("dropped", "merged")


@dataclasses.dataclass(frozen=True)
class Compressor:
    """One way to shrink N tokens to K: a named pure function with static shapes. Hashable, and so static under `jit`.

    Calling it with `Tokens`, `keep` and the evidence that it asks for gives a `Compressed`::

        compressor(tokens, keep=64, query_attention=row)

    `keep` is a Python (or NumPy) float in (0, 1], a fraction of N, or an int in 1..N; `keep = N` is the identity.
    Leading dimensions are free, and every set of tokens is shrunk by itself. It runs under `jit`, `vmap`, `export` and
    `grad` (through values, not through choices). Padding is picked only where fewer than K valid tokens exist, after
    tokens with a NaN or an infinity, in their values or in the evidence about them, which are picked after all others;
    none of these joins another token or is joined, or has any influence. Ties go to the lower index.

    Attributes:
        name: what schedules and tables call it.
        select: `select(tokens, *, keep: int, **evidence, **options) -> Selection`. Keyword-only parameters named in
            `EVIDENCE` are what it is told (optional ones default to None), the others are options with defaults.
        at: where it is meant to work. "tower": in every block of the vision tower, between attention and MLP; "input":
            on the visual tokens before the decoder's first layer; "decoder": at the entry of a decoder layer.
        paper: its source.
        options: pairs of name and hashable value for `select`.
        calibrated: later layers should add the logarithm of the sizes to the attention logits of the keys.
        tower_layer: whose attention, keys and features of the tower it reads (`middle_attention` apart), counted from
            the tower's end (-2 is the layer that LLaVA takes its features from).
        rest: what becomes of tokens that `select` neither keeps nor merges: "dropped", or "merged" into their most
            similar survivors, see `tokencarve_jax.merging.merge_rest`.
        reads_grid: it is spatial and looks at `tokens.grid`. Models give the grid to such methods alone: each grid is a
            program of its own.

    Raises:
        TypeError: A parameter of `select` is neither evidence nor an option with a default, or an option is not
            hashable.
        ValueError: `at` is no place, `rest` no choice, or an option is no parameter of `select`.

    Source: this package's; the signature as the declaration of what is needed is optax's habit.

    Examples:
        >>> def loudest(tokens, *, keep):
        ...     order = jnp.argsort(-jnp.abs(tokens.values).max(-1))
        ...     return Selection(jnp.sort(order[..., :keep], axis=-1).astype(jnp.int32))
        >>> compressor = Compressor("loudest", loudest, at="decoder")
        >>> left = compressor(Tokens.of(jnp.array([[1.0], [-3.0], [2.0]])), keep=2)
        >>> left.indices.tolist(), left.tokens.values.tolist(), compressor.evidence
        ([1, 2], [[-3.0], [2.0]], ())
    """

    name: str
    select: Callable[..., Selection]
    at: str = "decoder"
    paper: str = ""
    options: tuple[tuple[str, Hashable], ...] = ()
    calibrated: bool = False
    tower_layer: int = -2
    rest: str = "dropped"
    reads_grid: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        if self.at not in PLACES:
            raise ValueError(f"compressor {self.name!r}: at must be one of {', '.join(PLACES)}, got {self.at!r}")
        if self.rest not in REST:
            raise ValueError(f"compressor {self.name!r}: rest must be one of {', '.join(REST)}, got {self.rest!r}")
        parameters = self._parameters
        for name, parameter in parameters.items():
            if name not in EVIDENCE and parameter.default is inspect.Parameter.empty and name not in dict(self.options):
                raise TypeError(
                    f"compressor {self.name!r}: its parameter {name!r} is neither evidence ({', '.join(EVIDENCE)}) nor "
                    "an option with a default"
                )
        for name, value in self.options:
            if name not in parameters or name in EVIDENCE:
                raise ValueError(f"compressor {self.name!r} has no option {name!r}; it has {', '.join(self._names)}")
            hash(value)

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return _keyword_only(self.select)

    @property
    def _names(self) -> list[str]:
        return [name for name in self._parameters if name not in EVIDENCE] or ["none"]

    @property
    def evidence(self) -> tuple[str, ...]:
        """Names of all that it can be told, those that it can do without too."""
        return tuple(name for name in self._parameters if name in EVIDENCE)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the evidence that it cannot do without."""
        empty = inspect.Parameter.empty
        return tuple(name for name in self.evidence if self._parameters[name].default is empty)

    def replace(self, name: str, **options: Hashable) -> "Compressor":
        """The same method under another name, some of its options changed."""
        merged = tuple(sorted((dict(self.options) | options).items()))
        return dataclasses.replace(self, name=name, options=merged)

    def __call__(self, tokens: Tokens, *, keep: float | int, **evidence: Any) -> Compressed:
        """Shrink the tokens.

        Args:
            tokens: from `Tokens.of`.
            keep: a fraction in (0, 1] as a float, or a count as an int.
            **evidence: what the method asks for, by the names and shapes of `EVIDENCE`; arrays, or what JAX makes
                arrays of.

        Returns:
            The K tokens that are left.

        Raises:
            TypeError: `tokens` are no `Tokens`, `keep` is no number, evidence is missing or not asked for, or `select`
                returns anything but a `Selection` with indices of integers.
            ValueError: `keep` is out of range, or evidence or what `select` returns has another shape.
        """
        if not isinstance(tokens, Tokens):
            raise TypeError(f"{self.name} takes Tokens, got {type(tokens).__name__}; wrap values in Tokens.of(values)")
        kept = plan(tokens.shape[-1], keep).kept
        told = self._checked(tokens, {name: value for name, value in evidence.items() if value is not None})
        if kept == tokens.shape[-1]:
            every = jnp.broadcast_to(jnp.arange(kept, dtype=jnp.int32), tokens.shape)
            return Compressed(tokens, every, every)
        compress = functools.partial(_compress, self, keep=kept)
        return on_any_mesh(compress, tokens.values)(tokens, told)

    def _checked(self, tokens: Tokens, evidence: dict[str, Any]) -> dict[str, Any]:
        if unknown := [name for name in evidence if name not in self.evidence]:
            raise TypeError(f"{self.name} takes no {unknown[0]}; it takes {', '.join(self.evidence) or 'no evidence'}")
        *leading, count = tokens.shape
        told: dict[str, Any] = {}
        sizes = {"N": count} if self.at == "tower" else {"N": count, "D": tokens.values.shape[-1]}
        for name in self.required:
            if name not in evidence:
                shape = f" [..., {', '.join(EVIDENCE[name])}]" if EVIDENCE[name] else ""
                raise TypeError(f"{self.name} needs {name}{shape}, and got none")
        for name, value in evidence.items():
            array, letters = value, EVIDENCE[name]
            if letters:
                array = jnp.asarray(value, bool if name == "text_valid" else None)
                expected = [*leading, *(sizes.get(letter, letter) for letter in letters)]
                if array.ndim == len(expected) and "T" in letters:  # the first one says how many there are
                    sizes.setdefault("T", array.shape[len(leading) + letters.index("T")])
                if array.ndim != len(expected) or any(
                    isinstance(size, int) and size != got for size, got in zip(expected, array.shape, strict=True)
                ):
                    raise ValueError(
                        f"{self.name}: {name} must be [{', '.join(map(str, expected))}], got {list(array.shape)}"
                    )
            told[name] = array
        return told


@functools.cache
def _keyword_only(select: Callable[..., Selection]) -> Mapping[str, inspect.Parameter]:
    """Keyword-only parameters but for `keep`; read once, and not at each call of a compressor."""
    found = inspect.signature(select).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    return {name: parameter for name, parameter in found.items() if parameter.kind is kind and name != "keep"}


# Compiled also where the caller is not, so that a call outside `jit` is one program and not a hundred.
@functools.partial(jax.jit, static_argnames=("compressor", "keep"))
def _compress(compressor: Compressor, tokens: Tokens, told: dict[str, Any], *, keep: int) -> Compressed:
    return carry_out(compressor, tokens, told, decide(compressor, tokens, told, keep))


def decide(compressor: Compressor, tokens: Tokens, told: dict[str, Any], keep: int) -> Selection:
    """What `select` returns, its types and shapes checked while tracing; indices and assignment as int32.

    Raises:
        TypeError: It is not a `Selection`, or indices or assignment are not integers.
        ValueError: An array of it has the wrong shape.
    """
    selection = compressor.select(tokens, keep=keep, **told, **dict(compressor.options))
    if not isinstance(selection, Selection):
        raise TypeError(
            f"{compressor.name}: select must return a Selection, got {type(selection).__name__}; "
            "tokencarve_jax.Selection(indices) makes one"
        )
    left = (*tokens.shape[:-1], keep)
    shapes = {"indices": left, "assignment": tokens.shape, "weights": tokens.shape}
    shapes["values"] = (*left, tokens.values.shape[-1])
    for name, shape in shapes.items():
        array = getattr(selection, name)
        if array is None and name != "indices":
            continue
        whole = name in ("indices", "assignment")
        expected = f"{compressor.name}: select must return {name} {'of integers ' if whole else ''}{list(shape)}"
        if not isinstance(array, jax.Array | np.ndarray):
            raise TypeError(f"{expected}, got {type(array).__name__}")
        if whole and not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{expected}, got {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{expected} for keep={keep}, got {list(array.shape)}")
    assignment = None if selection.assignment is None else jnp.asarray(selection.assignment, jnp.int32)
    return dataclasses.replace(selection, indices=jnp.asarray(selection.indices, jnp.int32), assignment=assignment)


def carry_out(compressor: Compressor, tokens: Tokens, told: dict[str, Any], selection: Selection) -> Compressed:
    """The tokens that a decision leaves, with what becomes of the rest."""
    if compressor.rest == "merged":
        return merge_rest(tokens, selection, _usable(tokens, told))
    return gather(tokens, selection)


@usual_promotion
def _usable(tokens: Tokens, told: dict[str, Any]) -> jax.Array:
    """[..., N] bool: valid tokens that are finite in their values and in all evidence about them."""
    about = [tokens.values]
    for name, array in told.items():
        if {"T", "N"} <= set(EVIDENCE[name]):
            by_token = jnp.moveaxis(array, -1, tokens.values.ndim - 2)
            if "text_valid" in told:
                words = told["text_valid"][..., None, :]
                words = words.reshape(*words.shape[:-1], *[1] * (by_token.ndim - words.ndim), words.shape[-1])
                by_token = jnp.where(words, by_token, 0)
            about.append(by_token.reshape(*tokens.shape, math.prod(by_token.shape[len(tokens.shape) :])))
        elif "N" in EVIDENCE[name]:
            about.append(array)
    return tiers(tokens.valid, *about) == USABLE
