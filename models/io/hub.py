"""Checkpoint folders: a local one, or a model of the Hugging Face hub; and what their config.json holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from models.errors import ConfigError
from models.io.untrusted import file_problem, parsing, read_json

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")  # config, tokenizer and processor
_WEIGHTS = ("*.safetensors",)  # pickles are not among them: they can run any code when opened


def find_checkpoint(source: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a checkpoint, downloaded first where `source` is a model id.

    Token, cache folder and offline mode are those of huggingface_hub (`HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`).

    Args:
      source: a local folder, or a model id such as "llava-hf/llava-1.5-7b-hf".
      revision: branch, tag or commit on the hub; None is its main branch.
      weights: whether they are downloaded too, and not the small files alone.

    Raises:
      FileNotFoundError: `source` is not a folder, the hub does not have it, or it has no safetensors.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if os.path.lexists(folder):
        raise FileNotFoundError(f"{name} {file_problem(folder) or 'is a file'}; expected a folder, or a model id")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise FileNotFoundError(f"{name} is not a folder; expected one, or a model id such as llava-hf/llava-1.5-7b-hf")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [*SMALL_FILES, *(_WEIGHTS if weights else ())]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{name} is not a local folder and cannot be had from the hub: {reason}") from error
    if weights and not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{name} has no safetensors on the hub; weights as pickles (.bin) are refused, because they can run any "
            "code when opened"
        )
    return folder


def transformers() -> Any:
    """The package: imported late, as it takes a second, and without its advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers as package

    return package


def read_hf_config(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Read `folder/config.json`, and `generation_config.json` beside it where there is one.

    Args:
      folder: a local folder in Hugging Face format.

    Returns:
      transformers' config, and the content of the other file, which takes precedence for special tokens.

    Raises:
      ConfigError: a file cannot be read.
    """
    path, generation = Path(folder) / "config.json", Path(folder) / "generation_config.json"
    if not os.path.lexists(path):
        raise ConfigError(f"{folder} has no config.json; expected a checkpoint folder in Hugging Face format")
    if problem := file_problem(path):
        raise ConfigError(f"{path} {problem}")
    with parsing(path, ConfigError):
        hf = transformers().AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return hf, read_json(generation, ConfigError) if os.path.lexists(generation) else {}
