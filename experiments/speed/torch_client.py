"""The client of the process that runs transformers on PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from models.errors import CommandError
from models.families.llava import LlavaConfig

_ROOT = Path(__file__).parents[2]


class OutOfMemory(Exception):
    """A batch does not fit."""


class TorchClient(contextlib.AbstractContextManager["TorchClient"]):
    """A fresh process that holds transformers' model; use it as a context.

    It sleeps unless it is asked for something, and this process sleeps while it works: neither disturbs the other's
    times. `call` asks for a public method of `experiments.speed.torch_server.Server` by name.

    Args:
      config: of the model.
      dtype: of weights and hidden states.
      threads: for PyTorch's own pool on the CPU.

    Attributes:
      about: versions, device and number of parameters, as the process reports them.
    """

    def __init__(self, config: LlavaConfig, *, dtype: str, threads: int):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.torch_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        try:
            self.about = self.call("start", config=dataclasses.asdict(config), dtype=dtype, threads=threads)
        except BaseException:
            self.__exit__()
            raise
        self.prefill = functools.partial(self.call, "prefill")
        self.generate = functools.partial(self.call, "generate")

    def call(self, name: str, **arguments: Any) -> Any:
        """Have the server do something, and wait for the answer.

        Raises:
          OutOfMemory: there is not enough.
          CommandError: it failed, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
            answer, error = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            raise CommandError(f"the transformers process ended at {name!r}; what it printed is above") from None
        if error == "out of memory":
            raise OutOfMemory("transformers runs out of memory")
        if error:
            raise CommandError(f"the transformers process failed at {name!r}: {error}")
        return answer

    def __exit__(self, *_: object) -> None:
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
