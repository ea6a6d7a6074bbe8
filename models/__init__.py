"""LLaVA and its relatives in Flax NNX, from Hugging Face checkpoints."""

from typing import Any

from models.interrupts import end_at_once_while_importing

end_at_once_while_importing()


def from_pretrained(source: Any, **options: Any) -> Any:
    """A model of whatever family the checkpoint is, found by its `model_type`.

    Args:
      source: a local folder with `config.json` and safetensors, a converted folder, or a model id on the hub.
      **options: `dtype`, `mesh`, `revision` and `verify`, see `models.llava.Llava.from_pretrained`.

    Returns:
      The model, with `model(input_ids, pixel_values) -> logits [B, S, V] float32` and `model.generate`.

    Raises:
      ConfigError: an architecture that is not supported.
      CheckpointError: weights that are missing, surplus, damaged, altered or of the wrong shape; it lists them all.
      FileNotFoundError: neither a folder nor a model id that the hub has.
      ValueError: a mesh with another axis.

    Examples:
      >>> import models
      >>> type(models.from_pretrained("experiments/tiny")).__name__
      'Llava'
    """
    from models import auto  # here, because it takes a second that `--help` should not wait for

    return auto.from_pretrained(source, **options)
