"""LLaVA and its relatives in Flax NNX, from Hugging Face checkpoints."""

from typing import Any

from models.interrupts import end_at_once_while_importing

end_at_once_while_importing()


def from_pretrained(source: Any, **options: Any) -> Any:
    """A model of whatever family the checkpoint is; arguments, result and errors of `models.llava.Llava`'s.

    Examples:
      >>> import models
      >>> type(models.from_pretrained("experiments/tiny")).__name__
      'Llava'
    """
    from models import auto  # here, because it takes a second that `--help` should not wait for

    return auto.from_pretrained(source, **options)
