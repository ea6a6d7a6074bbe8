"""What enters the decoder for each image, after a cut before it: tower, projector and a method, and nothing else runs.

Axis letters: B batch, I images of a row, N visual tokens of an image, K kept, D width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from models.engine import plan, prefill
from models.engine.model import VisionLanguageModel
from models.engine.notation import named
from models.engine.prompt import Prompt
from models.engine.target import Target
from models.serving.request import before_decoder
from tokencarve_jax import Compressor
from tokencarve_jax.tokens import rows


@functools.partial(jax.jit, static_argnames=("plan", "target"))
def _entering(
    model: VisionLanguageModel, prompt: Prompt, seed: jax.Array, *, plan: plan.Plan, target: Target
) -> tuple[jax.Array, jax.Array]:
    """[B, I * K, D] visual tokens that enter decoder layer 0, and [B, I * K] bool, which of them there are."""
    hidden, flow, _ = prefill.enter(model, prompt, seed, plan=plan, target=target, flow=prefill.Prefill)
    if flow.sequence.deepstack:
        raise ValueError(
            f"{model.model_type} models add to their visual tokens behind decoder layers too, which what enters the "
            "decoder leaves out"
        )
    hidden = flow.before_layer(0, hidden)
    return rows(hidden, flow.sequence.visual_slots), flow.sequence.visual_valid


def image_embeds(
    model: VisionLanguageModel,
    input_ids: Any,
    pixel_values: Any,
    *,
    attention_mask: Any = None,
    method: str | Compressor,
    keep: float | int,
    seed: int = 0,
    **inputs: Any,
) -> list[jax.Array]:
    """The visual tokens of images, cut as `model.generate` cuts them before its decoder.

    Args:
      model: any family whose images enter the decoder as a whole (not Qwen3-VL).
      input_ids: [B, S] integers, image placeholders expanded, as the checkpoint's processor gives them. What the text
        says has no influence.
      pixel_values: of all rows in order, as the processor gives them.
      attention_mask: [B, S], non-zero for real tokens.
      method: a registered name or a compressor; `before_decoder` says which can be had.
      keep: of each image, a fraction (of the largest image here, see `VisionLanguageModel.prefill`) or a count.
      seed: of compressors that draw.
      **inputs: whatever else the processor returns, by its own name, such as `image_sizes`.

    Returns:
      For each image in order [K, D] in the dtype of the weights; fewer rows for an image that has fewer.

    Raises:
      ValueError, TypeError: inputs that do not fit each other, a method that cannot be had here, or an impossible keep.
    """
    cut = before_decoder(named(method) if isinstance(method, str) else method, keep)
    prompt = model.prompt(input_ids, pixel_values, attention_mask, per_image=True, **inputs)
    given, options = model.arguments(prompt, cut, seed)
    values, valid = _entering(model, *given, **options)
    images = prompt.images or 1
    values = values.reshape(-1, values.shape[1] // images, values.shape[2])
    there = np.asarray(valid).reshape(len(values), -1)
    return [image[np.flatnonzero(own)] for image, own in zip(values, there, strict=True) if own.any()]
