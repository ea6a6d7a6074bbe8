"""LLaVA, Qwen-VL and their relatives in Flax NNX, from Hugging Face checkpoints."""

from typing import Any


def from_pretrained(source: Any, **options: Any) -> Any:
    """Load a model of any supported family, chosen by the checkpoint's `model_type`.

    Args:
      source: a local folder with `config.json` and safetensors, a converted folder, or a model id on the hub.
      **options: `dtype`, `mesh`, `revision` and `verify`, see `models.llava.Llava.from_pretrained`.

    Returns:
      The model, with `model(input_ids, pixel_values) -> logits [B, S, V] float32` and `model.generate`.

    Raises:
      ConfigError: the architecture is not supported.
      CheckpointError: weights are missing, surplus, damaged, altered or of the wrong shape; it lists them all.
      FileNotFoundError: `source` is neither a folder nor a model id that the hub has.
      ValueError: the mesh has an unknown axis.

    Examples:
      >>> import models
      >>> type(models.from_pretrained("experiments/tiny")).__name__
      'Llava'
    """
    from models.auto import VisionLanguageModel  # here, because it takes a second that `--help` should not wait for

    return VisionLanguageModel.from_pretrained(source, **options)
