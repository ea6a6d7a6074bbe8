"""What lmms-eval finds by its entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import Any

MODEL_ID = "tokencarve_jax"


def manifest() -> Any:
    """The model's name and where its class is; nothing else is imported before it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path="experiments.lmms.model.TokenCarve")
