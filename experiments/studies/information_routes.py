"""Compare the routes to the information score: their error, the tokens that they choose, their time.

The reference is the singular value decomposition in float64. The matrices are states of real models that packages
bring (`--states`), hidden states of a model, entering layers 1 to 4, and random ones that are hard in different ways.
Also measured are the two routes that one would write in a line, without what the package does for accuracy: the thin
SVD and the eigen-decomposition of H H^T.
Prints two tables and writes results.json.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import collections
import functools
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tokencarve_jax as tc
from experiments.core import cli, results
from experiments.metrics.latency import timed
from experiments.studies.real_states import from_packages
from experiments.studies.score_matrices import (
    LIKE_HIDDEN_STATES,
    from_chance,
    from_file,
    from_model,
    like_hidden_states,
)
from models.errors import CommandError
from tokencarve_jax.scores.information import ROUTES

BUSY_S = 0.15  # before each timed call: longer than BLAS threads spin after the one before, whatever their setting
_EXAMPLES = """examples:
  python -m experiments.studies.information_routes --states --limit=4
                                                           real models, and the shipped one
  python -m experiments.studies.information_routes                 the shipped model and random matrices
  python -m experiments.studies.information_routes --model=path/to/llava --dtype=bfloat16 --limit=4 --widths
                                                           the hidden states of another model alone
  python -m experiments.studies.information_routes --hidden=states.npz --limit=0 --widths
                                                           hidden states from anywhere
"""
SVD = "thin SVD"


def thin_svd(tokens: jax.Array) -> jax.Array:
    """The definition, written down: what all routes are timed against."""
    u, s, _ = jnp.linalg.svd(tokens, full_matrices=False)
    return jnp.abs(u * s[..., None, :]).sum(-1)


def plain_gram(tokens: jax.Array) -> jax.Array:
    """Eigenpairs of H H^T in float32 and nothing else."""
    gram = jnp.einsum("...nd,...md->...nm", tokens, tokens, precision="highest")
    squares, u = jnp.linalg.eigh(gram)
    return jnp.abs(u * jnp.sqrt(jnp.maximum(squares, 0))[..., None, :]).sum(-1)


@functools.cache
def calls() -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Every route of the package, and the two plain ones. On a CPU "jacobi" is "gram", and is left out."""
    names = [name for name in ROUTES if name != "jacobi" or jax.default_backend() != "cpu"]
    routes: dict[str, Callable[[jax.Array], jax.Array]] = {
        name: jax.jit(functools.partial(tc.information_contribution, method=name)) for name in names
    }
    return routes | {SVD: jax.jit(thin_svd), "plain Gram": jax.jit(plain_gram)}


def chosen(tokens: jax.Array, attention: jax.Array, contribution: np.ndarray, keep: float | int) -> set[int]:
    """The final K that follow from a given score, by the package's own later steps."""
    # A diagonal matrix has its diagonal as score, exactly: any score, whatever made it, enters through `features`.
    # Ranks and not values, so that float32 does not round two scores together.
    points = np.argsort(np.argsort(-contribution, kind="stable"), kind="stable")
    features = jnp.diag(jnp.asarray(len(points) - points, jnp.float32))
    return set(tc.carve(tokens, attention, keep=keep, features=features, information="norm").indices.tolist())


def compare(tokens: np.ndarray, attention: np.ndarray, keep: float | int) -> dict[str, dict[str, float]]:
    """Per route the errors of C relative to the mean of C, and the share of the K tokens that float64 takes."""
    rows, weights = jnp.asarray(tokens, jnp.float32), jnp.asarray(attention, jnp.float32)
    u, s, _ = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
    exact = np.abs(u * s).sum(-1)
    wanted = chosen(rows, weights, exact, keep)
    best = np.argsort(-exact, kind="stable")[: len(wanted)]
    found = {}
    for name, call in calls().items():
        score = np.asarray(call(rows), np.float64)
        error = np.abs(score - exact) / (exact.mean() or 1)
        same = len(wanted & chosen(rows, weights, score, keep)) / len(wanted)
        found[name] = {"median_error": float(np.median(error)), "largest_error": float(error.max()), "same": same}
        found[name]["best"] = len(np.intersect1d(best, np.argsort(-score, kind="stable")[: len(best)])) / len(best)
    return found


def summarise(cases: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Over matrices of one kind."""
    return {
        name: {
            "median_error": statistics.median(case[name]["median_error"] for case in cases),
            "largest_error": max(case[name]["largest_error"] for case in cases),
            "same": statistics.mean(case[name]["same"] for case in cases),
            "fewest_same": min(case[name]["same"] for case in cases),
            "best": statistics.mean(case[name]["best"] for case in cases),
            "fewest_best": min(case[name]["best"] for case in cases),
        }
        for name in calls()
    }


def time_matrices(shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, jax.Array]:
    """Two of them, [N, D] or [B, N, D]: LAPACK's solvers do less where singular values decay."""
    *batch, n, d = shape
    decaying = [like_hidden_states(n, d, rng) for _ in range(math.prod(batch))]
    found = {LIKE_HIDDEN_STATES: np.reshape(decaying, shape), "Gaussian": rng.normal(size=shape)}
    return {name: jnp.asarray(matrices, jnp.float32) for name, matrices in found.items()}


def times(matrices: dict[str, jax.Array], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each call on each matrix, in turns, so that all see the same machine, and a busy one: in a model,
    layers run before, and cores that slept are slow at first.
    """
    layer = jax.jit(lambda tokens: jnp.einsum("...nd,...md->...nm", tokens, tokens))
    taken = {matrix: {name: list[float]() for name in calls()} for matrix in matrices}
    for repeat in tqdm(range(-1, repeats), desc="timing", file=sys.stderr, disable=None):
        for (matrix, tokens), (name, call) in itertools.product(matrices.items(), calls().items()):
            busy = time.perf_counter() + (BUSY_S if repeat >= 0 else 0)
            while time.perf_counter() < busy:
                layer(tokens).block_until_ready()
            _, seconds = timed(functools.partial(call, tokens))
            if repeat >= 0:
                taken[matrix][name].append(seconds)
    return taken


def agreement_table(agreement: dict[str, dict[str, dict[str, float]]]) -> str:
    """Largest error; the same best tokens, and the same kept ones, on average and at least, in percent."""

    def cell(r: dict[str, float]) -> str:
        error = f"{r['largest_error']:.0e}".replace("e-0", "e-").replace("e+0", "e+")
        shares = (f"{100 * r[what]:5.1f} ({100 * r[f'fewest_{what}']:.1f})" for what in ("best", "same"))
        return " ".join([error, *shares])

    return results.format_table(["matrix", *calls()], [[name, *map(cell, r.values())] for name, r in agreement.items()])


def time_table(taken: dict[str, dict[str, list[float]]]) -> str:
    """Median and fastest, and how many times faster than the thin SVD by either."""
    rows = []
    for matrix, routes in taken.items():
        for name, seconds in routes.items():
            median, fastest = statistics.median(seconds), min(seconds)
            ratios = statistics.median(routes[SVD]) / median, min(routes[SVD]) / fastest
            rows.append([matrix, name, f"{1e3 * median:.1f}", f"{1e3 * fastest:.1f}", *(f"{r:.1f}" for r in ratios)])
    return results.format_table(["matrix", "route", "median ms", "fastest ms", "thin SVD / it", "of the fastest"], rows)


def measure(flags: argparse.Namespace, *, command: Sequence[str]) -> None:
    """Compare the routes, time them, print both tables and write results.json.

    Raises:
      CommandError: `--keep` or a file does not fit; says which.
    """
    path = results.claim(flags.out, "information-routes")
    rng = np.random.default_rng(flags.seed)
    found: dict[str, list[dict[str, dict[str, float]]]] = collections.defaultdict(list)
    sources = itertools.chain(
        from_packages(flags.states, rng),
        from_model(flags.model, flags.dtype, flags.limit, revision=flags.revision),
        from_file(flags.hidden, rng),
        from_chance(flags.tokens, flags.widths, flags.seeds, rng),
    )
    for name, tokens, attention in tqdm(sources, desc="comparing", unit=" matrices", file=sys.stderr, disable=None):
        try:
            kept = tc.plan(len(tokens), flags.keep).kept
        except ValueError as error:
            raise CommandError(f"keep={flags.keep}: {error}") from error
        if kept == len(tokens):
            raise CommandError(f"keep={flags.keep} leaves all {kept} tokens of {name!r}: nothing to choose")
        found[name].append(compare(tokens, attention, flags.keep))
    agreement = {name: summarise(cases) for name, cases in found.items()}
    shape = (*([flags.batch_size] if flags.batch_size > 1 else []), flags.tokens, flags.time_width)
    taken, machine = times(time_matrices(shape, rng), flags.repeats), results.machine()
    if agreement:
        print("Largest error of C / mean C; then which part of the best tokens are those of float64, and which of")
        print("those kept with attention, pruned and merged: in %, on average (and at least)\n")
        print(agreement_table(agreement))
    size = " x ".join(map(str, shape))
    print(f"\nTimes at {size} on {machine['device']}, {machine['cores']} cores, {flags.repeats} rounds\n")
    print(time_table(taken))
    settings = vars(flags) | {"hidden": flags.hidden and str(flags.hidden)}
    matrices = {name: len(cases) for name, cases in found.items()}
    measured = {"matrices": matrices, "agreement": agreement, "seconds": taken}
    results.write_study(path, "information-routes", command, settings, **measured)
    print(f"\nEvery figure and time: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, measure, and print what went wrong in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="python -m experiments.studies.information_routes", description=__doc__, epilog=_EXAMPLES)
    cli.add_model_flags(parser)
    cli.add_keep_flag(parser, default=0.222)
    whole: dict[str, Any] = {"type": cli.positive, "metavar": "COUNT"}
    parser.add_argument(
        "--limit",
        type=cli.seed,
        default=8,
        metavar="COUNT",
        help="held-out scenes that the model sees; 0 loads no model (default: %(default)s)",
    )
    parser.add_argument(
        "--hidden", type=Path, metavar="FILE", help="an .npz of arrays [..., N, D] to compare the routes on too"
    )
    parser.add_argument(
        "--states", action="store_true", help="compare them first on real models; needs the extra `states`"
    )
    parser.add_argument("--tokens", default=576, help="N of the random matrices (default: %(default)s)", **whole)
    parser.add_argument(
        "--widths",
        nargs="*",
        default=[1024, 192],
        help="D of them, above and below N; may be none (default: 1024 192)",
        **whole,
    )
    parser.add_argument("--seeds", default=3, help="random matrices of each kind (default: %(default)s)", **whole)
    parser.add_argument("--seed", type=cli.seed, default=0, help="of attention at random (default: %(default)s)")
    parser.add_argument("--time-width", default=4096, help="D of the timing (default: %(default)s)", **whole)
    parser.add_argument("--batch-size", default=1, help="matrices at a time, timed (default: %(default)s)", **whole)
    parser.add_argument("--repeats", default=25, help="rounds of the timing (default: %(default)s)", **whole)
    cli.add_out_flag(parser, "results/information_routes")
    command = ["python", "-m", "experiments.studies.information_routes", *argv]
    return cli.run(lambda flags: measure(flags, command=command), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
