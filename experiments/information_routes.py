"""Every route to the information score: its error, its choice of tokens, its time.

    python -m experiments.information_routes

compares the routes of `tokencarve_jax.information` with float64 on synthetic matrices that are hard in different
ways, times them against `jnp.linalg.svd(full_matrices=False)`, prints two tables and writes them to `results.json`.
Give the hidden states of a model as `--hidden=FILE.npz`: every array [..., N, D] in it becomes a row of that table.
"""

import argparse
import collections
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tokencarve_jax as tc
from tokencarve_jax.information import ROUTES


def synthetic(n: int, d: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Named matrices [N, D] float32."""

    def decaying(power: float, spread: float = 0.5) -> np.ndarray:
        rank = min(n, d)
        left = np.linalg.qr(rng.normal(size=(n, rank)))[0]
        right = np.linalg.qr(rng.normal(size=(d, rank)))[0]
        norms = np.exp(spread * rng.normal(size=(n, 1)))
        return norms * ((left * np.arange(1, rank + 1) ** -power) @ right.T) + 1e-6 * rng.normal(size=(n, d))

    for power in (0.3, 0.5, 1.0, 2.0):
        yield f"decay 1/j^{power}", decaying(power)
    near = decaying(0.5)
    near[n // 2 :] = near[: n - n // 2] * (1 + 1e-3 * rng.normal(size=(n - n // 2, d)))
    yield "near-duplicates", near
    massive = decaying(0.5)
    massive[7] *= 1000 * np.linalg.norm(massive, axis=1).mean() / np.linalg.norm(massive[7])
    yield "one token x 1000", massive
    zeros = decaying(0.5)
    zeros[::5] = 0
    yield "a fifth zero rows", zeros
    yield "common mean", decaying(0.3, 0.05) + 0.02 * 32 / d**0.5 * rng.normal(size=(1, d))


def chosen(tokens: jax.Array, attention: jax.Array, contribution: np.ndarray, keep: float | int) -> set[int]:
    """The final K that follow from a given score, by the package's own later steps."""
    # A diagonal matrix has its diagonal as score, exactly: any score, whatever made it, enters through `features`.
    # Ranks and not values, so that float32 does not round two scores together.
    points = np.argsort(np.argsort(-contribution, kind="stable"), kind="stable")
    features = jnp.diag(jnp.asarray(len(points) - points, jnp.float32))
    return set(tc.carve(tokens, attention, keep=keep, features=features, information="norm").indices.tolist())


def compare(tokens: np.ndarray, keep: float | int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Per route: the largest error of C relative to the mean of C, and the share of the K tokens that float64 takes."""
    tokens = np.asarray(tokens, np.float32)
    u, s, _ = np.linalg.svd(tokens.astype(np.float64), full_matrices=False)
    exact = np.abs(u * s).sum(-1)
    attention = jnp.asarray(rng.dirichlet(np.ones(len(tokens))), jnp.float32)
    wanted = chosen(jnp.asarray(tokens), attention, exact, keep)
    result = {}
    for name in ROUTES:
        score = np.asarray(tc.information_contribution(jnp.asarray(tokens), method=name), np.float64)
        shared = len(wanted & chosen(jnp.asarray(tokens), attention, score, keep)) / len(wanted)
        result[name] = {
            "median error": float(np.median(np.abs(score - exact)) / exact.mean()),
            "largest error": float(np.max(np.abs(score - exact)) / exact.mean()),
            "same tokens": shared,
        }
    return result


def times(n: int, d: int, batch: int, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Median seconds of each route and of the thin SVD, taken in turns so that all see the same machine."""
    tokens = jnp.asarray(rng.normal(size=(batch, n, d)), jnp.float32)

    def thin(x: jax.Array) -> jax.Array:
        u, s, _ = jnp.linalg.svd(x, full_matrices=False)
        return jnp.abs(u * s[..., None, :]).sum(-1)

    def route(name: str) -> Callable[[jax.Array], jax.Array]:
        return jax.jit(lambda x: tc.information_contribution(x, method=name))

    calls = {"jnp.linalg.svd": jax.jit(thin)} | {name: route(name) for name in ROUTES}
    taken = collections.defaultdict(list)
    for call in calls.values():
        call(tokens).block_until_ready()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call(tokens).block_until_ready()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.222, help="share of tokens kept (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="random matrices of each kind (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=576, help="N (default: %(default)s)")
    parser.add_argument(
        "--widths", type=int, nargs="*", default=[1024, 192], help="D of the first table, above and below N (1024 192)"
    )
    parser.add_argument("--hidden", type=pathlib.Path, help="an .npz of arrays [..., N, D] to add as rows")
    parser.add_argument("--time-width", type=int, default=4096, help="D of the timing (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="batch of the timing (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each route (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/information_routes"))
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    rows: dict[str, list[dict[str, dict[str, float]]]] = collections.defaultdict(list)
    if args.hidden:
        with np.load(args.hidden) as arrays:
            for name in arrays.files:
                for tokens in tqdm(arrays[name].reshape(-1, *arrays[name].shape[-2:]), desc=name):
                    rows[name].append(compare(tokens, args.keep, rng))
    for d in args.widths:
        for seed in tqdm(range(args.seeds), desc=f"{args.tokens} x {d}"):
            for name, tokens in synthetic(args.tokens, d, np.random.default_rng(seed)):
                rows[f"{args.tokens} x {d}, {name}"].append(compare(tokens, args.keep, rng))

    table = {
        name: {
            route: {
                "median error": statistics.median(case[route]["median error"] for case in cases),
                "largest error": max(case[route]["largest error"] for case in cases),
                "same tokens": statistics.mean(case[route]["same tokens"] for case in cases),
                "fewest same": min(case[route]["same tokens"] for case in cases),
            }
            for route in ROUTES
        }
        for name, cases in rows.items()
    }
    taken = times(args.tokens, args.time_width, args.batch, args.repeats, rng)

    print("\nLargest error of C / mean C, and same tokens as float64 on average (and at least), in %\n")
    print(f"| {'matrix':34} |" + "".join(f" {route:^22} |" for route in ROUTES))
    print(f"|{'-' * 36}|" + f"{'-' * 24}|" * len(ROUTES))
    for name, result in table.items():
        cells = [
            f"{r['largest error']:.0e} {100 * r['same tokens']:6.2f} ({100 * r['fewest same']:5.1f})"
            for r in result.values()
        ]
        print(f"| {name:34} |" + "".join(f" {cell:^22} |" for cell in cells))
    device = jax.devices()[0].device_kind
    print(f"\nMedian time, {args.batch} x {args.tokens} x {args.time_width}, {device}\n")
    print("| route          |       ms | thin SVD / route |\n|----------------|----------|------------------|")
    for name, seconds in taken.items():
        print(f"| {name:14} | {1000 * seconds:8.1f} | {taken['jnp.linalg.svd'] / seconds:16.1f} |")

    settings = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()}
    machine = {"device": device, "platform": platform.platform(), "jax": jax.__version__, "numpy": np.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    part = path.with_suffix(".part")
    part.write_text(
        json.dumps({"settings": settings, "machine": machine, "agreement": table, "seconds": taken}, indent=1)
    )
    part.replace(path)
    print(f"\nWritten to {path}")


if __name__ == "__main__":
    main()
