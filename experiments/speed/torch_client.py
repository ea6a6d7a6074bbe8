"""Our end of the process that runs transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from models.errors import CommandError
from models.families.llava import LlavaConfig

_ROOT = Path(__file__).parents[2]


class OutOfMemory(Exception):
    """A batch does not fit."""


class Peer:
    """A fresh process that holds transformers' model; use it as a context.

    It sleeps unless it is asked for something, and we sleep while it works: neither disturbs the other's times.

    Args:
      config: of the model.
      dtype: of weights and hidden states.
      threads: for PyTorch's own pool on the CPU.

    Attributes:
      about: versions, device and number of parameters, as the process told.
    """

    def __init__(self, config: LlavaConfig, *, dtype: str, threads: int):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.torch_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        try:
            self.about = self._ask("start", config=dataclasses.asdict(config), dtype=dtype, threads=threads)
        except BaseException:
            self.close()
            raise

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise CommandError(f"the transformers process ended at {do!r}; its own words are above")
        answer = json.loads(line)
        if answer.get("error") == "out of memory":
            raise OutOfMemory("transformers runs out of memory")
        if "error" in answer:
            raise CommandError(f"the transformers process failed at {do!r}: {answer['error']}")
        return answer

    def inputs(self, ids: np.ndarray, pixels: np.ndarray) -> None:
        """Hand over a prompt."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "inputs.npz"
            np.savez(path, input_ids=ids, pixel_values=pixels)
            self._ask("inputs", path=str(path))

    def prefill(self) -> float:
        """Seconds of one prefill."""
        return self._ask("prefill")["seconds"]

    def generate(self) -> float:
        """Seconds of a user's call for one new token."""
        return self._ask("generate")["seconds"]

    def decode(self, steps: int) -> float:
        """Seconds of that many decoding steps."""
        return self._ask("decode", steps=steps)["seconds"]

    def peak_memory(self) -> int:
        """Bytes, at most, so far."""
        return self._ask("memory")["peak"]

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
