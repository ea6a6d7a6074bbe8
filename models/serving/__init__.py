"""Compressed images for serving engines: embeddings for a server as it is, and a plugin by which vLLM itself cuts.

Imports no engine and no PyTorch, and nothing at all before it is asked for: vLLM imports this in all its processes.
"""

import importlib
from typing import Any

_HOME = {"Answer": "client", "ask": "client", "before_decoder": "request", "image_embeds": "embeds"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.serving.{_HOME[name]}"), name)
