"""From a config to a folder: asks every method, measures what attention added, and writes what comes of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence

import jax

from experiments.attention_rank import report, statement
from experiments.attention_rank.probe import AttentionRank
from experiments.core import methods, results
from experiments.core.config import RunConfig
from experiments.core.methods import BASELINE, Method
from experiments.core.runner import Runner
from experiments.core.workers import Call
from experiments.evaluation.answers import SHAPE, Answers, Ask
from experiments.evaluation.cells import Cell
from experiments.evaluation.worker import ModelWorker, WorkerConfig
from experiments.metrics.rank import TOLERANCE
from experiments.reports import figures
from models.engine.model import VisionLanguageModel
from models.engine.plan import TOKENCARVE_LAYER as FIRST  # the first layer behind every cut
from models.errors import CommandError


@dataclasses.dataclass(frozen=True)
class AtBudgets:
    """Vanilla, and every method at every budget: a `Comparison`."""

    methods: Sequence[Method]
    keeps: Sequence[float | int]  # fractions or counts
    square: bool = True  # see `Comparison`

    def cells(self, model: VisionLanguageModel, *, length: int, visual: int) -> Mapping[str, Cell]:
        """See `Comparison`; names are those of methods, each with the count of visual tokens left."""
        del length, visual
        config = model.config
        layers, visual = config.text.num_layers, config.tokens_per_image
        if layers < FIRST + 2:
            raise CommandError(
                f"the model has {layers} decoder layers; expected {FIRST + 2} or more: the cut comes before layer "
                f"{FIRST}, and of the last layer only one token's output is ever computed"
            )
        found = [Cell.of(config, BASELINE, ())]
        for keep in self.keeps:
            for method in self.methods:
                with methods.naming(f"{method.name}, keep={keep}"):
                    schedule = method.schedule(keep, num_layers=layers, num_visual=visual)
                    found.append(Cell.of(config, method.name, schedule))
                if found[-1].tokens == visual:
                    raise CommandError(f"--keep {keep} leaves all of the {visual} visual tokens; expected fewer")
        named = {f"{cell.method} {cell.tokens}": cell for cell in found}
        if len(named) < len(found):
            keeps = " ".join(map(str, self.keeps))
            raise CommandError(f"--keep {keeps}: two of them leave the same number of tokens")
        return named


def run(config: RunConfig, worker: WorkerConfig) -> str:
    """Make a run, or go on with one.

    Args:
      config: where and by whom.
      worker: what is asked, with a comparison `AtBudgets`.

    Returns:
      The table, what follows from it, and where everything else is.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: the folder cannot be written to, or another process does so.
    """
    with Runner(config, "rank", functools.partial(ModelWorker, worker)) as runner:
        runner.first(_check)
        cells: Mapping[str, Cell] = runner.first(operator.attrgetter("cells"))
        settings = runner.settings(
            methods=list(dict.fromkeys(cell.method for cell in cells.values() if cell.cuts)),
            own_methods=methods.own(cut.compressor for cell in cells.values() for cut in cell.cuts),
            visual_tokens=sorted({cell.tokens for cell in cells.values()}),
            tolerance=TOLERANCE,
            **worker.about(),
        )
        settings["code_sha256"] = results.code_checksum("experiments/attention_rank", "experiments/metrics/rank.py")
        journal = runner.journal("measured.jsonl", settings, shape=SHAPE)
        answers = Answers(list(cells), journal, len(worker.questions.load()))
        _ask(runner, worker, answers)
        return _write(runner, worker, cells, answers)


def _check(worker: ModelWorker) -> None:
    """Find out before the first cell is compiled whether all can be traced."""
    batches, _ = worker.batches.read(worker.questions, range(1))
    for batch, cell in itertools.product(batches, worker.cells.values()):
        prompt = batch.prompt(worker.model, cell.cuts)
        prefill = functools.partial(type(worker.model).prefill, carve=cell.cuts)
        try:
            jax.eval_shape(prefill, worker.model, prompt)
        except (TypeError, ValueError) as error:
            raise CommandError(f"{cell.method} cannot leave {cell.tokens} visual tokens: {error}") from error


def _ask(runner: Runner, worker: WorkerConfig, answers: Answers) -> None:
    """Have everything asked that the journal does not hold yet; cells take turns at a batch."""
    parts = worker.questions.load().batches(worker.batch_size)
    calls = [
        Call((number, name), Ask(part, [name], probe=AttentionRank()))
        for number, part in enumerate(parts)
        for name in answers.missing(part)
    ]
    total = len(parts) * len(answers.known)
    for _, entry in runner.do(calls, total=total, initial=total - len(calls), unit=" batches"):
        del entry["seconds"]
        answers.add(entry)
    if answers.errors:
        index, why = min(answers.errors.items())
        raise CommandError(f"question {index} cannot be asked: {why}")


def _write(runner: Runner, worker: WorkerConfig, cells: Mapping[str, Cell], answers: Answers) -> str:
    questions = worker.questions.load()
    vanilla, rows = answers.column(next(iter(cells))), []
    for name, cell in cells.items():
        about = {
            "method": cell.method,
            "place": cell.cuts[0].compressor.at if cell.cuts else "",
            "visual_tokens": cell.tokens,
        }
        right = [bool(mark) for mark in answers.scores(questions, name)]
        same = [own == other for own, other in zip(answers.column(name), vanilla, strict=True)]
        measured = {part: answers.column(name, part) for part in report.TOKENS}
        rows.append(about | report.row(right, same, measured, first=FIRST))
    correlations = report.correlations(rows, first=FIRST)
    samples = [questions.record(index) | answers.predictions(index) for index in answers.asked]
    scenes = len({sample["scene"] for sample in samples})
    text = statement.text(rows, correlations, scenes=scenes, first=FIRST)
    found = {
        "model": worker.model.source,
        "scenes": scenes,
        "first_layer": FIRST,
        "settings": answers.journal.settings,
        "methods": rows,
        "correlations": correlations,
        "samples": samples,
    }
    runner.write(found, {"table.md": text + "\n", "layers.csv": report.csv_text(rows)})
    figures.save(figures.accuracy_by_rank(rows, first=FIRST), runner.out / "accuracy.png")
    figures.save(figures.rank_by_layer(rows, first=FIRST), runner.out / "layers.png")
    return f"{text}\n\nEvery figure: {runner.out / 'results.json'} and layers.csv; drawn: accuracy.png and layers.png."
