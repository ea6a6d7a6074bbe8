"""How likely given answers are behind a prompt, carved or not: what multiple choice by likelihood asks for.

Axis letters: B batch, T tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.engine.decode import DECODE_CAPACITY_BUCKET, loglikelihood
from models.engine.model import VisionLanguageModel
from models.engine.plan import Schedule
from models.engine.prompt import Prompt, round_up

_BUCKET = 8  # answers of similar length share a compiled program


def padded(texts: Sequence[Sequence[int]], rows: int, stop: int) -> np.ndarray:
    """[rows, T] int32: the texts, and `stop` behind them and in further rows."""
    tokens = np.full((rows, round_up(max(map(len, texts)), _BUCKET)), stop, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens


def loglikelihoods(
    model: VisionLanguageModel, prompt: Prompt, answers: Sequence[Sequence[int]], *, cuts: Schedule, seed: int
) -> list[tuple[float, bool]]:
    """Loss of each answer, and whether it is what greedy decoding says.

    Args:
      model: the model.
      prompt: B rows.
      answers: tokens of the answers to the first so many of them.
      cuts: what happens to the visual tokens.
      seed: of compressors that draw.

    Returns:
      Per answer the mean negative log probability of its tokens and of the stop token behind them, as the loss of
      LLaVA's own adapter in lmms-eval; and whether each of its own tokens is the likeliest.
    """
    stop = model.config.eos_token_ids[0]
    tokens = padded([[*answer, stop] for answer in answers], len(prompt.input_ids), stop)
    capacity = round_up(tokens.shape[1], DECODE_CAPACITY_BUCKET)
    prefilled = model.prefill(prompt, carve=cuts, seed=seed, decode_capacity=capacity)
    likely, greedy = (np.asarray(x) for x in loglikelihood(model, prefilled, tokens))
    return [
        (float(-likely[row, : len(answer) + 1].mean()), bool(greedy[row, : len(answer)].all()))
        for row, answer in enumerate(answers)
    ]
