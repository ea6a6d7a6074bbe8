"""Whether a compressor keeps the contract, found out by running it: the registry's methods, and anyone's own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from tokencarve_jax.compressor import EVIDENCE, Compressor, carry_out, decide
from tokencarve_jax.samples import LEADING, Batch, D, N, make_evidence
from tokencarve_jax.tokens import Compressed, Tokens


def check(compressor: Compressor, *, seed: int = 0) -> None:
    """Run a compressor on small random sets of tokens, and raise where it does not keep the contract.

    It takes seconds. What is tried: that it runs under `jit` and `vmap`, with positions of three axes and with all
    tokens kept; what it returns (types, shapes, ascending indices within range, who joins whom); that it does the
    same each time, and for each set of a batch by itself; that ties go to the lower index; that padding, tokens that
    are not finite and text that is not valid have no influence, and are picked last. Methods for the tower are asked
    for 17 of 33 tokens, for one of their blocks may merge half at most; all others for 11.

    Args:
        compressor: the method. A function becomes one by `Compressor("its name", function)`.
        seed: of the random tokens and the evidence about them.

    Returns:
        None: all of it holds.

    Raises:
        TypeError: `compressor` is not a `Compressor`, or what its `select` returns has a wrong type.
        ValueError: Anything else does not hold, or `select` raises. One line says what.

    Source: this package's; all of the registry passes. One table that every variant has to pass is optax's habit.

    Examples:
        >>> import jax.numpy as jnp
        >>> from tokencarve_jax import Compressor, Selection
        >>> def dimmest(tokens, *, keep, query_attention):
        ...     return Selection(jnp.argsort(query_attention)[..., :keep])
        >>> check(Compressor("dimmest", dimmest))
        Traceback (most recent call last):
          ...
        ValueError: dimmest: indices must be strictly ascending, got ...; jnp.sort them along axis -1
    """
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"check takes a Compressor, got {type(compressor).__name__}; Compressor(name, select) makes one"
        )
    trial = _Trial(compressor, np.random.default_rng(seed))
    trial.always_the_same()
    trial.ties()
    trial.what_does_not_count()
    trial.other_programs()


class _Result(NamedTuple):
    """What `select` says about joining, and what is left."""

    assignment: Any
    left: Compressed

    @property
    def indices(self) -> np.ndarray:
        return np.asarray(self.left.indices)

    @property
    def stands(self) -> np.ndarray:
        return (self.indices[..., None] == np.arange(N)).any(-2)


class _Trial:
    """One compressor and the batches that it is tried on."""

    def __init__(self, compressor: Compressor, rng: np.random.Generator):
        self.compressor, self.rng = compressor, rng
        self.keep = (N + 1) // 2 if compressor.at == "tower" else N // 3
        self.draws = "key" in compressor.evidence
        self.clean = Batch.clean(rng, compressor.evidence)
        self.uneven = Batch.uneven(rng, compressor.evidence)
        self.run = self.program(self.keep)

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.compressor.name}: {what}")

    def program(self, keep: int, wrap: Callable[[Any], Any] = lambda one: one) -> Callable[[Batch], _Result]:
        """A program of its own, traced at its first call."""

        def one(tokens: Tokens, told: dict[str, Any]) -> tuple[Any, Compressed]:
            selection = decide(self.compressor, tokens, told, keep)
            return selection.assignment, carry_out(self.compressor, tokens, told, selection)

        compiled = jax.jit(wrap(one))

        def run(batch: Batch) -> _Result:
            with self.errors(keep):
                return _Result(*jax.tree.map(np.asarray, compiled(batch.tokens, batch.told)))

        return run

    def errors(self, keep: int) -> "_Errors":
        return _Errors(self.compressor.name, keep)

    def form(self, result: _Result, keep: int) -> None:
        """What holds for any result, whatever the tokens."""
        indices, assignment = result.indices, result.assignment
        if (wrong := indices[(indices < 0) | (indices >= N)]).size:
            self.fail(f"indices must be in 0..{N - 1} for {N} tokens, got {wrong[0]}")
        steps = np.diff(np.sort(indices, axis=-1), axis=-1)
        if not steps.all():
            twice = np.sort(indices, axis=-1)[..., 1:][steps == 0][0]
            self.fail(f"indices must be distinct, got {twice} twice in one set")
        if (back := np.diff(indices, axis=-1) < 0).any():
            before, after = indices[..., :-1][back][0], indices[..., 1:][back][0]
            self.fail(f"indices must be strictly ascending, got {before}, {after}; jnp.sort them along axis -1")
        if assignment is None:
            return
        if (wrong := assignment[(assignment < -1) | (assignment >= keep)]).size:
            self.fail(f"assignment must be a row in 0..{keep - 1}, or -1, got {wrong[0]}")
        if (np.take_along_axis(assignment, indices, -1) != np.arange(keep)).any():
            self.fail("assignment must give each token that stands its own row, and some stand elsewhere")

    def always_the_same(self) -> None:
        """In form, whenever it is called, and whatever other sets are in the batch."""
        first = self.run(self.clean)
        self.form(first, self.keep)
        for again in (self.run, self.program(self.keep)):
            if not _same(first, again(self.clean)):
                self.fail("must do the same each time, and two calls differ; draw by the evidence `key`")
        others = self.run(self.clean.with_others(Batch.clean(self.rng, self.compressor.evidence)))
        if not _same(_one(first, 0, 0), _one(others, 0, 0)):
            self.fail("must shrink each set of a batch by itself, and what it leaves of one depends on the others")

    def ties(self) -> None:
        """The lower index wins, unless a token's place is part of the method."""
        tied = self.run(self.clean.tied())
        if not self.draws and any(not _same(_one(tied, 0, 0), _one(tied, *index)) for index in np.ndindex(*LEADING)):
            self.fail("ties must go to the lower index, and of equal sets of equal tokens it leaves different ones")
        order = self.rng.permutation(N)
        by_place = (self.run(self.clean.reordered(order)).stands != self.run(self.clean).stands[..., order]).any()
        # Some rank tokens and go by the place in that line: they do the same where a lower index is better by a little.
        if by_place or np.array_equal(tied.stands, self.run(self.clean.tied(slope=1e-3)).stands):
            return
        for stands, row in zip(tied.stands.reshape(-1, N), tied.left.assignment.reshape(-1, N), strict=True):
            dropped, last = np.flatnonzero(row < 0), np.flatnonzero(stands)[-1]
            if dropped.size and dropped[0] < last:
                self.fail(f"ties must go to the lower index, and of equal tokens it leaves {last}, not {dropped[0]}")

    def what_does_not_count(self) -> None:
        """Padding, tokens that are not finite, and words that are not valid."""
        batch, keep = self.uneven, self.keep
        first = self.run(batch)
        self.form(first, keep)
        self.last("padding", first, batch.valid, ~batch.valid)
        self.last("a token with a NaN or an infinity", first, batch.usable, batch.valid & ~batch.usable)
        counts = np.take_along_axis(batch.valid, first.indices, -1)
        if not _same(first, self.run(batch.with_garbage(~batch.valid, self.rng)), counts):
            self.fail("padding must have no influence, and other values and evidence there change what is left")
        enough = batch.usable.sum(-1) >= keep
        marked = self.run(batch.replace(valid=batch.usable))
        if not _same(_one(first, enough), _one(marked, enough)):
            self.fail("a NaN or an infinity must count as padding, and marking it so changes what is left")
        if not np.isfinite(first.left.tokens.values[np.take_along_axis(batch.usable, first.indices, -1)]).all():
            self.fail("rows of finite tokens must be finite, and it returns a NaN or an infinity for some")
        if not _same(first, self.run(batch.without_other_text())):
            self.fail("words outside text_valid must have no influence, and a NaN there changes what is left")

    def last(self, what: str, result: _Result, better: np.ndarray, worse: np.ndarray) -> None:
        early = result.stands & worse & (~result.stands & better).any(-1, keepdims=True)
        if early.any():
            self.fail(f"picks {what} (token {np.argwhere(early)[0][-1]}) ahead of tokens that count")

    def other_programs(self) -> None:
        """Sets alone and under `vmap`, all tokens kept, positions of three axes."""
        axes = {name: 0 if EVIDENCE[name] else None for name in self.uneven.told}
        mapped = functools.partial(jax.vmap, in_axes=(0, axes))
        alone = self.program(self.keep, lambda one: mapped(mapped(one)))(self.uneven)
        self.form(alone, self.keep)
        if not self.draws and not _same(self.run(self.uneven), alone):
            self.fail("must leave the same of a set under vmap and in a batch; mind the leading dimensions")
        self.form(self.program(N)(self.uneven), N)
        shape = (2, N)
        told = make_evidence(self.rng, self.compressor.required, shape[:1])
        tokens = Tokens.of(np.ones((*shape, D), np.float32), positions=np.zeros((*shape, 3), np.int32))
        with self.errors(self.keep):
            jax.eval_shape(functools.partial(self.compressor, keep=self.keep), tokens, **told)


class _Errors:
    """Whatever a method raises, in one line that says whose it is."""

    def __init__(self, name: str, keep: int):
        self.name, self.keep = name, keep

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or str(error).startswith(f"{self.name}: select must return"):
            return
        said = (str(error).strip() or "no message").splitlines()[0]
        what = f"fails at keep = {'N = ' if self.keep == N else ''}{self.keep} of {N} tokens"
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
            what = "does not run under jax.jit"
        raise ValueError(f"{self.name}: {what}: {kind.__name__}: {said}") from error


def _one(result: _Result, *index: Any) -> _Result:
    return jax.tree.map(lambda array: array[index], result)


def _same(first: _Result, other: _Result, counts: np.ndarray | None = None) -> bool:
    """The same tokens stand, join and are left; values and sizes where `counts` [..., K], to rounding."""
    if not all(
        np.array_equal(getattr(first.left, name), getattr(other.left, name)) for name in ("indices", "assignment")
    ):
        return False
    pairs = zip(jax.tree.leaves(first.left.tokens), jax.tree.leaves(other.left.tokens), strict=True)
    where = np.ones(first.indices.shape, bool) if counts is None else counts
    return all(np.allclose(mine[where], theirs[where], 2e-5, 1e-6, equal_nan=True) for mine, theirs in pairs)
