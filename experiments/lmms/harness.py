"""lmms-eval as a library: its tasks, what they ask, and what they make of answers. It is imported when it is needed."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lmms.plugin import MODEL_ID
from experiments.lmms.requests import options
from experiments.lmms.sets import JUDGE, Set
from models.errors import CommandError, one_line
from models.io.untrusted import parsing

VERSION = "0.7.3"
INSTALL = f"pip install -e '.[lmms]' && pip install --no-deps lmms-eval=={VERSION}"
HERE = Path(__file__).parent / "tasks"
_WAYS_OUT = (KeyboardInterrupt, SystemExit, GeneratorExit, CommandError)


def require() -> None:
    """Raise a `CommandError` that says how to install lmms-eval where it is not."""
    if importlib.util.find_spec("lmms_eval") is None:
        raise CommandError(f"lmms-eval is not installed: {INSTALL}")


@contextlib.contextmanager
def set_fails(what: str) -> Iterator[None]:
    """Turn whatever the harness raises, for want of data, a judge or a network, into a `CommandError` of one line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except _WAYS_OUT:
        raise
    except Exception as error:
        cause: BaseException = error
        if callable(getattr(getattr(error, "last_attempt", None), "exception", None)):  # it tries several times
            cause = error.last_attempt.exception() or error  # type: ignore[attr-defined]
        raise CommandError(f"{what}: {type(cause).__name__}: {one_line(cause)}") from error


class Harness:
    """The tasks of some sets.

    Args:
      sets: which.
      include: folders with tasks of one's own.

    Attributes:
      sets: the same.
      skipped: by their names, why some cannot be asked or marked here, as far as that shows beforehand.

    Raises:
      CommandError: lmms-eval is not installed, a folder does not exist, or a task does not or is a group of tasks.
    """

    def __init__(self, sets: Sequence[Set], include: Sequence[Path] = ()):
        require()
        self.sets = sets
        for folder in include:
            if not folder.is_dir():
                raise CommandError(f"--include {folder}: no such folder")
        with set_fails("lmms-eval cannot be loaded"):
            from loguru import logger

            logger.remove()
            logger.add(sys.stderr, level="ERROR")
            import lmms_eval.evaluator
            import lmms_eval.tasks

        self._evaluate = lmms_eval.evaluator.simple_evaluate
        shipped = Path(lmms_eval.tasks.__file__).parent
        paths = [str(HERE), *map(str, include), *(str(shipped / one.folder) for one in sets if one.folder)]
        with set_fails("tasks cannot be read"):
            self._manager = lmms_eval.tasks.TaskManager("WARNING", paths, include_defaults=False, model_name=MODEL_ID)
            if any(one.task not in self._manager.all_subtasks for one in sets):
                self._manager = lmms_eval.tasks.TaskManager("WARNING", paths, model_name=MODEL_ID)
        for one in sets:
            if one.task not in self._manager.all_subtasks:
                what = "is a group; name its tasks" if one.task in self._manager.all_tasks else "is not a task"
                raise CommandError(f"{one.task} {what} of lmms-eval or of a folder given by --include")
        self.skipped = {one.name: why for one in sets if (why := self._why_skipped(one))}

    def config(self, one: Set) -> Mapping[str, Any]:
        """Of a task, as its YAML file has it."""
        from lmms_eval.utils import load_yaml_config

        with set_fails(one.task):
            return load_yaml_config(self._manager.task_index[one.task]["yaml_path"], mode="full")

    def _why_skipped(self, one: Set) -> str | None:
        from huggingface_hub import get_token

        if one.judged and not os.environ.get(JUDGE):
            return f"its answers are marked by a judge over the network, and {JUDGE} is not set"
        if (self.config(one).get("dataset_kwargs") or {}).get("token") and get_token() is None:
            return "its data need a login on the Hugging Face hub (hf auth login, or HF_TOKEN)"
        return None

    def questions(self, one: Set) -> int | None:
        """How many a set has: as published, or counted in the data of another task; None where those cannot be had."""
        try:
            return one.questions or len(self.load(one).eval_docs)
        except CommandError:
            return None

    def load(self, one: Set, **instead: Any) -> Any:
        """A task with its data; `instead` replaces what its file says.

        Raises:
          CommandError: they cannot be had.
        """
        with set_fails(one.task):
            named: Any = {"task": one.task, **instead} if instead else one.task
            return self._manager.load_config(named)[one.task]

    def asked(self, one: Set) -> tuple[str, Mapping[str, Any]]:
        """The text that a task asks of its sample here, or of its own first question, and how (see `options`).

        Raises:
          CommandError: neither can be had.
        """
        sample, config = HERE / "samples" / f"{one.name}.jsonl", self.config(one)
        split = config.get("test_split") or config.get("validation_split")
        instead = dict[str, Any]()
        if sample.exists():  # data of one line, and no images: the same functions make the same text of it
            own = {"data_files": {split: str(sample)}}
            instead = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": own, "process_docs": None}
        with parsing(one.task, CommandError):
            task = self.load(one, **instead)
            task.build_all_requests(limit=1)
            text, given = task.instances[0].args[:2]
        return text, options(given) if isinstance(given, Mapping) else {}

    def score(
        self, speaker: Any, task: Any, *, limit: int | None, folder: Path, by_question: Sequence[str] | None = None
    ) -> tuple[dict[str, float], list[float]]:
        """Have a task ask a model and mark its answers.

        Args:
          speaker: an `experiments.lmms.model.Speaker`.
          task: from `load`.
          limit: the first so many questions alone.
          folder: for files that a task writes.
          by_question: metrics whose marks of single questions are wanted, see `marks`; empty is the first that there
            is, None is none.

        Returns:
          All metrics that are numbers; and the marks.

        Raises:
          CommandError: it cannot do so.
        """
        flags = argparse.Namespace(output_path=str(folder), process_with_media=False, reasoning_tags=None)
        with set_fails(task.config.task):
            found = self._evaluate(
                model=speaker,
                tasks=[task],
                limit=limit,
                bootstrap_iters=0,
                log_samples=by_question is not None,
                task_manager=self._manager,
                verbosity="WARNING",
                cli_args=flags,
            )
        name = task.config.task
        metrics = {
            metric.partition(",")[0]: float(value)
            for metric, value in found["results"][name].items()
            if isinstance(value, (int, float)) and "_stderr" not in metric
        }
        if by_question is None:
            return metrics, []
        wanted = [one for one in by_question or tuple(metrics)[:1] if found["higher_is_better"][name].get(one, True)]
        return metrics, marks(found["samples"][name], wanted)


def marks(samples: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[float]:
    """What lmms-eval gives each question, in the order of their numbers; empty where that is not a share of 1.

    Args:
      samples: its records of questions.
      metrics: names; each question counts by the first that it has.

    >>> marks([{"doc_id": 1, "acc": {"score": 0.0}}, {"doc_id": 0, "acc": 1}], ["acc"])
    [1.0, 0.0]
    >>> marks([{"doc_id": 0, "acc": {"pred": "A", "answer": "A"}}], ["acc"])
    []
    """
    found = dict[int, float]()
    for sample in samples:
        value = next((sample[name] for name in metrics if name in sample), None)
        value = value.get("score") if isinstance(value, Mapping) else value
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            return []
        found[sample["doc_id"]] = float(value)
    return [found[number] for number in sorted(found)]
