"""Compare this package with transformers on one checkpoint: a long prompt about a real photograph, greedily answered.

Prints the largest KL divergence between the two next-token distributions over all tokens of the prompt, and the first
greedy token that differs. PASS and status 0 where both agree, FAIL and status 1 otherwise. Needs PyTorch, scikit-learn
(whose sample photograph it is) and memory for both models, one after the other.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import dataclasses
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import cli
from models.auto import from_pretrained
from models.errors import CommandError
from models.io import hub
from models.io.shards import INDEX, SINGLE
from models.processor import load_processor, render

_EXAMPLES = """examples:
  python -m models.check llava-hf/llava-1.5-7b-hf --against=transformers
  python -m models.check path/to/llava --against=transformers --prompt-tokens=2000
"""
# Nats per token. Equal weights in float32 stay below a thousandth of the first; bfloat16 rounds every activation.
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-4}
_TEXT = (
    "The photograph was taken on a day in spring, and whoever took it had waited for the light. Say what stands in "
    "front and what stands behind, which colours there are, how old the place may be, and what happened there before. "
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences between two implementations on one prompt.

    Attributes:
      tokens: length of the prompt.
      kl: the largest KL divergence of a token, in nats.
      at: its index in the prompt.
      greedy: how many greedy tokens were compared.
      differs: index of the first that differs, or None.
    """

    tokens: int
    kl: float
    at: int
    greedy: int
    differs: int | None


def divergence(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """KL divergence of each token from the reference, [S] float64, from logits [S, V]; NaN where a logit is NaN."""
    found = np.empty(len(logits))
    for row, (left, right) in enumerate(zip(logits, reference, strict=True)):  # a row at a time: V may be large
        p, q = (x.astype(np.float64) - x.max() for x in (left, right))
        p, q = (x - np.log(np.exp(x).sum()) for x in (p, q))
        found[row] = (np.exp(q) * (q - p)).sum()
    return found


def first_difference(tokens: np.ndarray, reference: np.ndarray) -> int | None:
    """Index of the first token that differs, the end of the shorter row included; None for equal rows."""
    common = min(len(tokens), len(reference))
    unequal = np.flatnonzero(tokens[:common] != reference[:common])
    if len(unequal):
        return int(unequal[0])
    return None if len(tokens) == len(reference) else common


def make_inputs(folder: Path, tokens: int) -> dict[str, Any]:
    """The processor's output for a photograph and a text of at least `tokens` tokens."""
    from sklearn.datasets import load_sample_images

    processor = load_processor(folder)
    text = _TEXT * -(-tokens // max(1, len(processor.tokenizer(_TEXT)["input_ids"]) - 1))
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt = render(processor, [{"role": "user", "content": content}])
    return dict(processor(images=[load_sample_images().images[0]], text=[prompt], return_tensors="np"))


def run_jax(folder: Path, inputs: dict[str, Any], *, dtype: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [S, V] and greedy tokens from this package."""
    model = from_pretrained(folder, dtype=jnp.dtype(dtype))
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(model(**inputs)[0])
        tokens = np.asarray(model.generate(**inputs, max_new_tokens=steps)[0])
    return logits, tokens


def run_transformers(folder: Path, inputs: dict[str, Any], *, dtype: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [S, V] and greedy tokens from transformers."""
    import torch
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in inputs.items()}
    tensors["pixel_values"] = tensors["pixel_values"].to(model.dtype)
    with torch.no_grad():
        logits = model(**tensors).logits[0].float().numpy()
        tokens = model.generate(**tensors, max_new_tokens=steps, do_sample=False)[0].numpy()
    return logits, tokens[inputs["input_ids"].shape[1] :]


def compare(folder: Path, *, dtype: str = "float32", prompt_tokens: int = 500, steps: int = 64) -> Comparison:
    """Run both and compare.

    Args:
      folder: a checkpoint in Hugging Face format.
      dtype: of weights and hidden states, on both sides.
      prompt_tokens: text tokens of the prompt, at least; short prompts do not show rotary mistakes.
      steps: greedy tokens.
    """
    inputs = make_inputs(folder, prompt_tokens)
    logits, tokens = run_jax(folder, inputs, dtype=dtype, steps=steps)
    gc.collect()  # one model at a time
    reference, wanted = run_transformers(folder, inputs, dtype=dtype, steps=steps)
    apart = divergence(logits, reference)
    worst = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    return Comparison(len(apart), float(apart[worst]), worst, len(wanted), first_difference(tokens, wanted))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, compare, and say what went wrong in one line."""
    parser = cli.Parser(prog="python -m models.check", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", help="a folder in Hugging Face format, or a model id on the hub")
    parser.add_argument("--against", choices=["transformers"], required=True, help="the other implementation")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub (default: main)")
    parser.add_argument("--dtype", choices=cli.DTYPES, default="float32", help="of both (default: %(default)s)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=500, metavar="N", help="text tokens, at least (default: %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="greedy ones (default: %(default)s)"
    )

    def body(flags: argparse.Namespace) -> int:
        if min(flags.prompt_tokens, flags.max_new_tokens) < 1:
            raise CommandError("--prompt-tokens and --max-new-tokens must be at least 1")
        folder = hub.find_checkpoint(flags.source, revision=flags.revision)
        if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
            raise CommandError(f"{folder} has neither {SINGLE} nor {INDEX}; transformers reads nothing else")
        try:
            import torch  # noqa: F401
        except ImportError:
            raise CommandError("PyTorch is not installed; this comparison needs it") from None
        found = compare(folder, dtype=flags.dtype, prompt_tokens=flags.prompt_tokens, steps=flags.max_new_tokens)
        limit = LIMITS[flags.dtype]
        greedy = "none" if found.differs is None else f"number {found.differs + 1}"
        passed = found.kl <= limit and found.differs is None  # a NaN does not pass
        print(f"prompt                    {found.tokens} tokens, visual ones included")
        print(f"largest KL of a token     {found.kl:.3g} nats, at token {found.at + 1} (limit {limit:g})")
        print(f"first different greedy    {greedy} of {found.greedy}")
        print("PASS" if passed else "FAIL")
        return 0 if passed else 1

    return cli.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
