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

from experiments.core import results, workers
from experiments.core.journal import Journal
from experiments.data.formats import SHORT
from experiments.evaluation.question_asker import QuestionAsker
from experiments.evaluation.settings import Asking, Settings
from experiments.lmms import model_args
from experiments.lmms.answers import Answers
from experiments.lmms.requests import Request, options
from models import compile_cache as compiled
from models.errors import CheckpointError, CommandError, ConfigError, one_line
from models.io.writing import own_folder


class Speaker(lmms):
    """A model of lmms-eval whose answers are given by workers and kept.

    Args:
      answers: where they come from.
      name: of the method that speaks; may be changed between evaluations.
      max_new_tokens: where a task has none.

    Attributes:
      together: methods that are asked at once, so that images are read once for all of them; empty is the one alone.
      asked: the requests of the latest call.
      broken: whether asking itself failed in it, and not what the harness does before and after.
    """

    is_simple = True
    together: Sequence[str] = ()
    asked: Sequence[Request] = ()
    broken = False

    def __init__(self, answers: Answers, name: str, *, max_new_tokens: int | None = None):
        super().__init__()
        self.answers, self.name, self._max_new_tokens = answers, name, max_new_tokens
        self._rank, self._world_size = rank_and_size()
        # Where the harness gathers what processes found; accelerate chooses NCCL where PyTorch sees GPUs.
        gpu = self._world_size > 1 and torch.cuda.is_available()
        self.device = torch.device("cuda", _local_rank()) if gpu else torch.device("cpu")

    def request(self, instance: Instance) -> Request:
        """What an instance of the harness asks; it is left as it is.

        Raises:
          CommandError: it is of a kind that nothing is known of.
        """
        if len(instance.args) != 6:
            raise CommandError(f"task {instance.task_name}: requests of {len(instance.args)} parts cannot be asked")
        text, what, look, doc_id, task, split = instance.args
        docs = self.task_dict[task][split]

        def see() -> Sequence[Any]:
            return look(docs[doc_id])

        if instance.request_type == "loglikelihood":
            continuation = what if isinstance(what, str) else str(what(docs[doc_id]))
            return Request(task, split, doc_id, text, see, continuation=continuation)
        return Request(task, split, doc_id, text, see, **options(what, max_new_tokens=self._max_new_tokens))

    def _said(self, instances: Sequence[Instance]) -> list[tuple[Request, Any]]:
        requests = [self.request(instance) for instance in instances]
        distinct = {request.key: request for request in requests}
        self.asked, self.broken = list(distinct.values()), True
        bar = tqdm(total=len(distinct), unit=" questions", file=sys.stderr, disable=True if self._rank else None)
        with bar:
            self.answers.ask(requests, self.together or [self.name], bar)
        self.broken = False
        return [(request, self.answers.said(request, self.name)) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, in order; an empty one where something could not be asked, which `answers.errors` tells."""
        return ["" if said is None else request.ended(said) for request, said in self._said(requests)]

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Losses, as the harness wants them, and whether greedy decoding says the same; infinite where not asked.

        Each pair is wrapped as an answer is, because lmms-eval 0.7.3 makes a text of a bare one.
        """
        pairs = [(math.inf, False) if said is None else (said[0], said[1]) for _, said in self._said(requests)]
        return [GenerationResult(pair) for pair in pairs]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not here.

        Raises:
          CommandError: always.
        """
        raise CommandError(f"task {requests[0].task_name} asks in several rounds, which tokencarve_jax does not answer")


class TokenCarve(Speaker):
    """The model that lmms-eval makes by its name.

    What goes wrong ends the process with one line and status 1: the harness itself would end with 0.

    Args:
      **given: see `experiments.lmms.model_args.read`.
    """

    def __init__(self, **given: Any):
        with _one_line():
            args = model_args.read(given)
            rank, size = rank_and_size()
            if size > 1:
                jax.config.update("jax_cuda_visible_devices", str(_local_rank()))
            compiled.keep_on_disk()
            asker = QuestionAsker(args.settings, args.asking, max_new_tokens=args.asking.max_new_tokens or SHORT)
            pool = workers.Alone(asker)
            answers = open_answers(args.settings, args.asking, pool, part=f"{rank}-of-{size}")
            super().__init__(answers, args.name, max_new_tokens=args.asking.max_new_tokens)

    def _said(self, instances: Sequence[Instance]) -> list[tuple[Request, Any]]:
        with _one_line():
            said = super()._said(instances)
        for request in self.asked:
            if error := self.answers.errors.get(request.key):
                print(f"tokencarve_jax: {request.key} could not be asked: {error}", file=sys.stderr)
        return said

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not here; ends the process with one line."""
        with _one_line():
            return super().generate_until_multi_round(requests)


def about(settings: Settings, asking: Asking, pool: workers.Pool) -> dict[str, Any]:
    """What answers depend on, but for the methods, as JSON types."""
    facts = {name: value for name, value in pool.identity.items() if name != "methods"}
    return {
        "border": asking.border,
        "conversation": asking.conversation,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "machine": results.machine(),
        **facts,
    }


def open_answers(settings: Settings, asking: Asking, pool: workers.Pool, *, part: str) -> Answers:
    """Answers of one process, in a folder below `settings.out` that runs with the same settings share.

    Args:
      settings: of the model.
      asking: how questions are put.
      pool: the workers.
      part: which of the processes this is.

    Raises:
      InUseError: another process writes there.
    """
    told = {"keep": settings.keep, "methods": list(pool.identity["methods"])} | about(settings, asking, pool)
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    own = settings.out / digest / part
    stack = contextlib.ExitStack()
    stack.enter_context(own_folder(own))
    atexit.register(stack.close)
    journal = Journal(own / "answers.jsonl", told, restart=settings.restart)
    paths = [path for path in sorted(own.parent.glob("*/answers.jsonl")) if path.parent != own]
    others = [] if settings.restart else [Journal(path, told) for path in paths]
    if journal.entries:
        print(f"Going on from {journal.path}; restart=True asks anew.", file=sys.stderr)
    entries = [entry for other in others for entry in other.entries]
    return Answers(pool, journal, batch_size=settings.batch_size, others=entries)


def rank_and_size() -> tuple[int, int]:
    """Which process this is, of how many, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """End the process with a line about what a user can put right."""
    try:
        yield
    except (CommandError, ConfigError, CheckpointError, OSError) as error:
        raise SystemExit(f"tokencarve_jax: error: {one_line(error)}") from error
