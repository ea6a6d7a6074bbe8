"""lmms-eval's side: its requests in, answers out. The only module of this package that imports the harness's classes.

    lmms-eval eval --model tokencarve_jax --model_args pretrained=llava-hf/llava-1.5-7b-hf,keep=128 --tasks pope

Answers are kept in a journal, batch by batch, so that the same command goes on where it was interrupted. Started by
`torchrun`, each process asks its share, on a GPU of its own where there are GPUs.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from experiments.core import methods, results
from experiments.core.journal import Journal
from experiments.core.workers import Alone
from experiments.evaluation.worker import ModelWorker
from experiments.lmms import model_args
from experiments.lmms.answers import SHAPE, Answers
from experiments.lmms.requests import Request, options
from models import compile_cache
from models.errors import CheckpointError, CommandError, ConfigError, one_line
from models.io.writing import own_folder


class Speaker(lmms):
    """A model of lmms-eval whose answers are given by workers and kept.

    Args:
      answers: where they come from.
      cell: the name of what answers; may be changed between evaluations.
      max_new_tokens: where a task has none.

    Attributes:
      together: cells that are asked at once, so that images are read once for all of them; empty is the one alone.
      asked: the requests of the latest call.
      broken: whether asking itself failed in it, and not what the harness does before and after.
    """

    is_simple = True
    together: Sequence[str] = ()
    asked: Sequence[Request] = ()
    broken = False

    def __init__(self, answers: Answers, cell: str, *, max_new_tokens: int | None = None):
        super().__init__()
        self.answers, self.cell, self._max_new_tokens = answers, cell, max_new_tokens
        self._rank, self._world_size, local = _process()
        # Where the harness gathers what processes found; accelerate chooses NCCL where PyTorch sees GPUs.
        gpu = self._world_size > 1 and torch.cuda.is_available()
        self.device = torch.device("cuda", local) if gpu else torch.device("cpu")

    def request(self, instance: Instance) -> Request:
        """What an instance of the harness asks; it is left as it is.

        Raises:
          CommandError: it is of another kind, such as one that asks in several rounds.
        """
        if len(instance.args) != 6:
            raise CommandError(
                f"task {instance.task_name} asks in a way that tokencarve_jax does not answer: a request of "
                f"{len(instance.args)} parts ({instance.request_type}); expected 6 parts"
            )
        text, what, look, doc_id, task, split = instance.args
        docs = self.task_dict[task][split]

        def see() -> Sequence[Any]:
            return look(docs[doc_id])

        if instance.request_type == "loglikelihood":
            continuation = what if isinstance(what, str) else str(what(docs[doc_id]))
            return Request(task, split, doc_id, text, see, continuation=continuation)
        return Request(task, split, doc_id, text, see, **options(what, max_new_tokens=self._max_new_tokens))

    def predictions(self, instances: Sequence[Instance]) -> list[tuple[Request, Any]]:
        """What is asked, each with the prediction; None where it could not be asked, see `answers.errors`."""
        requests = [self.request(instance) for instance in instances]
        self.asked, self.broken = list({request.key: request for request in requests}.values()), True
        quiet = True if self._rank else None
        with tqdm(total=len(self.asked), unit=" questions", file=sys.stderr, disable=quiet) as bar:
            self.answers.ask(requests, self.together or [self.cell], bar)
        self.broken = False
        return [(request, self.answers.prediction(request, self.cell)) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, in order; an empty one where something could not be asked."""
        return ["" if text is None else request.ended(text) for request, text in self.predictions(requests)]

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Losses, as the harness wants them, and whether greedy decoding gives the same; infinite where not asked.

        Each pair is wrapped as an answer is, because lmms-eval 0.7.3 makes a text of a bare one.
        """
        pairs = [(math.inf, False) if found is None else tuple(found) for _, found in self.predictions(requests)]
        return [GenerationResult(pair) for pair in pairs]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: see `request`."""
        return self.generate_until(requests)


class TokenCarve(Speaker):
    """The model that lmms-eval makes by its name.

    What goes wrong ends the process with one line and status 1: the harness itself would end with 0.

    Args:
      **given: see `experiments.lmms.model_args.read`.
    """

    def __init__(self, **given: Any):
        with _one_line():
            args = model_args.read(given)
            _, size, local = _process()
            if size > 1:
                jax.config.update("jax_cuda_visible_devices", str(local))
            compile_cache.keep_on_disk()
            super().__init__(_answers(args), args.cell, max_new_tokens=args.worker.prompt.max_new_tokens)

    def predictions(self, instances: Sequence[Instance]) -> list[tuple[Request, Any]]:
        """See `Speaker`; what could not be asked is printed."""
        with _one_line():
            found = super().predictions(instances)
        for request in self.asked:
            if error := self.answers.errors.get(request.key):
                print(f"tokencarve_jax: {request.key} could not be asked: {error}", file=sys.stderr)
        return found


def _answers(args: model_args.ModelArgs) -> Answers:
    """Answers of this process, in a folder below `args.journal` that runs with the same settings share.

    Raises:
      InUseError: another process writes there.
    """
    config, worker, (rank, size, _) = args.worker, ModelWorker(args.worker), _process()
    pool = Alone(worker)
    settings = {
        "cells": {name: " ".join(map(str, cell.cuts)) for name, cell in worker.cells.items()},
        "own_methods": methods.own(cut.compressor for cell in worker.cells.values() for cut in cell.cuts),
        "border": config.prompt.border,
        "conversation": config.prompt.conversation,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "machine": results.machine(),
        **pool.identity,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    own = args.journal / digest / f"{rank}-of-{size}"
    stack = contextlib.ExitStack()
    stack.enter_context(own_folder(own))
    atexit.register(stack.close)
    journal = Journal(own / "answers.jsonl", settings, restart=args.restart, shape=SHAPE)
    paths = [path for path in sorted(own.parent.glob("*/answers.jsonl")) if path.parent != own and not args.restart]
    others = [entry for path in paths for entry in Journal(path, settings, shape=SHAPE).entries]
    if journal.entries:
        print(f"Going on from {journal.path}; restart=True asks anew.", file=sys.stderr)
    return Answers(pool, journal, batch_size=config.batch_size, others=others)


def _process() -> tuple[int, int, int]:
    """Which process this is, of how many, and which of this machine, as torchrun says."""
    rank, size, local = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return int(rank or 0), int(size or 1), int(local or 0)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """End the process with a line about what a user can put right."""
    try:
        yield
    except (CommandError, ConfigError, CheckpointError, OSError) as error:
        raise SystemExit(f"tokencarve_jax: error: {one_line(error)}") from error
