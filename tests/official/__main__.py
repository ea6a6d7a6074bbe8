"""`python -m tests.official`: what the authors' code kept, as recorded, against the engine, a line for each method."""

import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.engine.cuts import gather_evidence
from models.engine.embed import embed
from models.engine.loop import run_layers
from models.engine.plan import INPUT, Cut, Plan
from models.engine.prefill import Prefill
from models.engine.relevance import QuestionEmbeddings
from models.llava import Llava
from models.nn.clip_text import PatchEmbedding
from tests.official import inputs
from tests.official.cases import ARRAYS, DIFFERENT, ENGINE, FIXTURES, GRID, LAYERS, VIDEO
from tokencarve_jax import COMPRESSORS, Tokens

CUTS = tuple(Cut(LAYERS.get(name, INPUT), COMPRESSORS[name], keep) for name in ENGINE for keep in ENGINE[name])
_STATES = ("normed_hidden", "text_hidden")
CLOSE = 2e-5  # of the largest value, between rows of two float32 programs


class Watching(Prefill):
    """Carries every cut out where it stands, notes down what it leaves, and goes on with all tokens."""

    found: dict[tuple[str, int], Any]

    def before_layer(self, index: int, hidden: jax.Array) -> jax.Array:
        for cut in CUTS:
            if cut.place == (index or INPUT):
                compressor, known = cut.compressor, self.known(cut, index, hidden)
                tokens, told = gather_evidence(cut, hidden, self.sequence, known, images=1)
                if compressor.name in ("visionzip", "trim"):  # their sums are of the tower's features
                    tokens = Tokens.of(self.sequence.evidence["tower_features", -2])
                left = compressor(tokens, keep=int(cut.keep), **told)
                self.found[compressor.name, int(cut.keep)] = left.indices, left.tokens.values[..., 0]
                if compressor.name == "dart":
                    self.found["dart's evidence", 0] = told
        self.hidden = hidden
        return hidden


@jax.jit
def watch(model: Any, prompt: Any) -> dict[str, Any]:
    """What each cut leaves: indices [B, K] and the first column of the values [B, K]."""
    plan = Plan(CUTS)
    hidden, sequence, _ = embed(model, prompt, plan=plan)
    flow = Watching(model, hidden, sequence, plan, "blocks", jax.random.key(0))
    flow.found = {}
    run_layers(model.decoder.layers[: max(LAYERS.values()) + 1], hidden, flow)
    return {f"{name} {keep}": left for (name, keep), left in flow.found.items()}


def questions(model: Llava) -> QuestionEmbeddings:
    """CLIP's embeddings of the questions and of patches, by seed."""
    told = inputs.clip()
    config: Any = types.SimpleNamespace(vision=model.config.vision, projection_dim=inputs.SPACE)
    patches = PatchEmbedding(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    patches.post_layernorm = model.vision_tower.post_layernorm
    patches.projection.weight[...] = jnp.asarray(told["projection"])
    return QuestionEmbeddings(told["texts"], np.ones(told["texts"].shape[:2], bool), patches)


def ours() -> dict[str, Any]:
    """What the engine leaves, and what methods that are compared on arrays leave, by method and budget."""
    with tempfile.TemporaryDirectory() as folder:
        inputs.write_checkpoint(Path(folder))
        model = Llava.from_pretrained(folder)
    rows = [inputs.prompt(row) for row in range(inputs.IMAGES)]
    ids, mask = np.zeros((2, len(rows), max(map(len, rows))), np.int64)
    for row, prompt in enumerate(rows):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    found = watch(model, model.prompt(ids, inputs.pixels(), mask, relevance=questions(model)))
    called = {"query_attention": "attention", "class_attention": "attention", "tower_keys": "keys"}
    called |= {"tower_features": "values", "relevance": "relevance", "previous_hidden": "keys"}
    for name, budgets in ARRAYS.items():
        how: dict[str, Any] = {"width": 48} if name in ("prumerge", "v2drop") else {"alike": name == "cdpruner"}
        moves = name in VIDEO
        given = [inputs.video(case) if moves else inputs.arrays(case, **how) for case in range(inputs.IMAGES)]
        stacked = {kind: np.stack([one[kind] for one in given]) for kind in given[0]}
        for keep in budgets:
            precise = moves or name == "vispruner"  # whose rounds go on from how similarities were rounded
            with jax.enable_x64(precise):
                wide = np.float64 if precise else np.float32
                asked = COMPRESSORS[name].evidence
                told = {kind: stacked[called[kind]].astype(wide) for kind in asked if kind != "key"}
                told |= {"key": jax.random.key(inputs.SEED)} if "key" in asked else {}
                tokens = Tokens.of(stacked["values"].astype(wide), grid=GRID if moves else None)
                left = COMPRESSORS[name](tokens, keep=keep, **told)
            found[f"{name} {keep}"] = left.indices, left.tokens.values[..., 0]
    return jax.tree.map(np.asarray, found)


def by_turns(told: dict[str, np.ndarray], keep: int, turns: Callable[[list[int]], Iterable[int]]) -> np.ndarray:
    """DART's indices [B, K] from the engine's evidence, with pivots in any order of their places in the sequence."""
    hidden, words = (told[name] / np.linalg.norm(told[name], axis=-1, keepdims=True) for name in _STATES)
    taken = []
    for row, asked in enumerate(told["text_valid"]):
        states = np.concatenate([hidden[row], words[row][asked]]).astype(np.float64)
        lengths = (np.abs(told["keys"][row]).sum(-1), np.abs(told["text_keys"][row][asked]).sum(-1))
        image, text = (np.argsort(-length, kind="stable")[:4] for length in lengths)
        found = set(image.tolist())
        for pivot in turns([inputs.SYSTEM + int(place) for place in (*image, *(inputs.PATCHES + text))]):
            free = [token for token in range(inputs.PATCHES) if token not in found]
            alike = states[free] @ states[pivot - inputs.SYSTEM]
            found |= {free[i] for i in np.argsort(alike, kind="stable")[: (keep - 4) // 8]}
        taken.append(sorted(found))
    return np.array(taken)


def check_dart(found: dict[str, Any]) -> list[str]:
    """Put what pivots in the order of a Python set would choose in DART's place; [] if order is all it lacks."""
    told, failures = found["dart's evidence 0"], []
    for keep in ENGINE["dart"]:
        if (by_turns(told, keep, list) != found[f"dart {keep}"][0]).any():
            failures.append(f"dart at {keep}: the compressor does not do what its docstring says")
        found[f"dart {keep}"] = by_turns(told, keep, set), None
    return failures


def compare(name: str, keep: int, theirs: dict[str, Any], found: Any) -> tuple[int, int, float, list[str]]:
    """Images, those with equal sets, the mean share of the authors' tokens that is kept, and what differs."""
    indices, values = found
    shares, wrong = [], []
    for image, kept in enumerate(theirs.get("kept", [])):
        surplus = len(indices[image]) - len(kept)  # SparseVLM's means
        missing = sorted({*kept} - {*indices[image].tolist()})
        shares.append(1 - len(missing) / len(kept))
        if missing and missing != DIFFERENT.get((name, keep, image)):
            wrong.append(f"{name} at {keep}, image {image}: lacks {missing} ({surplus} means)")
    for image, rows in enumerate(theirs.get("rows", [])):
        mine = values[image]
        if name == "sparsevlm":  # rows that stand where nothing of theirs does
            mine = mine[~np.isin(indices[image], theirs["kept"][image])]
        apart = np.abs(np.sort(rows)[:, None] - np.sort(mine)).min(1) if len(mine) else np.array([np.inf])
        far = int((apart > CLOSE * np.abs(mine).max(initial=1)).sum())
        if "kept" not in theirs:
            shares.append(1 - far / len(rows))
        if far:
            wrong.append(
                f"{name} at {keep}, image {image}: {far} of {len(rows)} merged rows differ, by {apart.max():.1e}"
            )
    return len(shares), sum(share == 1 for share in shares), float(np.mean(shares)), wrong


def main() -> int:
    """Print a line for each method; 1 if one differs by more than is listed."""
    fixtures, found = json.loads(FIXTURES.read_text()), ours()
    failures = check_dart(found)
    for name, fixture in fixtures.items():
        results = [compare(name, int(keep), case, found[f"{name} {keep}"]) for keep, case in fixture["cases"].items()]
        images, equal = (sum(result[part] for result in results) for part in (0, 1))
        shares, wrong = np.mean([result[2] for result in results]), [line for result in results for line in result[3]]
        failures += wrong
        state = "equal" if images == equal else f"mean {shares:.4f}"
        print(f"{name:16} {', '.join(fixture['cases']):14} {equal} of {images} sets {state:12} {fixture['repository']}")
    print(*failures, sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
