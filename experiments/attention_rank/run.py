"""From settings to a folder: asks every method, measures what attention added, and writes what comes of it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.attention_rank import report, statement
from experiments.attention_rank.settings import Settings
from experiments.attention_rank.watching import answer, watched
from experiments.core import loading, methods, results
from experiments.core.journal import Journal
from experiments.data.scene_questions import SceneQuestions
from experiments.evaluation.cells import AtOneBudget
from experiments.metrics.rank import TOLERANCE, measure
from experiments.metrics.summary import BASELINE
from experiments.reports import figures
from models.engine.plan import TOKENCARVE_LAYER, Plan, resolve
from models.engine.prompt import Prompt
from models.engine.target import CPU
from models.errors import CommandError
from models.io.writing import own_folder
from tokencarve_jax import plan as count

MAX_NEW_TOKENS = SceneQuestions.max_new_tokens
BATCH = 6  # questions at a time
BUCKET = 32  # questions of any length share one compiled program per method
TOKENS = ("all", "visual")  # those whose attention output is measured


@dataclasses.dataclass(frozen=True)
class Case:
    """A method at a budget.

    Attributes:
      method: its name.
      kept: visual tokens that it leaves.
      place: where: "tower", "input", "decoder", or "" for vanilla.
      plan: the same for the engine.
    """

    method: str
    kept: int
    place: str
    plan: Plan


def cases(llava: Any, settings: Settings) -> list[Case]:
    """Vanilla, and every method at every budget.

    Raises:
      CommandError: they cannot be compared; says why.
    """
    layers, visual = llava.config.text.num_layers, llava.config.tokens_per_image
    if layers < TOKENCARVE_LAYER + 2:
        raise CommandError(
            f"{settings.model} has {layers} decoder layers; expected {TOKENCARVE_LAYER + 2} or more: the cut comes "
            f"before layer {TOKENCARVE_LAYER}, and of the last layer only one token's output is ever computed"
        )
    found = [Case(BASELINE, visual, "", Plan())]
    for keep in settings.keep:
        compared = AtOneBudget(tuple((method, keep) for method in methods.named(settings.methods)))
        for name, cell in compared.cells(llava, length=0).items():
            if name == BASELINE:
                continue
            plan = resolve(cell.cuts, visual)
            if not plan.cuts:
                raise CommandError(f"--keep {keep} leaves all of the {visual} visual tokens; expected fewer")
            found.append(Case(name, count(visual, keep).kept, plan.cuts[0].compressor.at, plan))
    budgets = [count(visual, keep).kept for keep in settings.keep]
    if len(set(budgets)) < len(budgets):
        raise CommandError(f"--keep {' '.join(map(str, settings.keep))}: two of them leave the same number of tokens")
    return found


class Asker:
    """Holds the model, and asks it with one method after the other.

    Args:
      settings: of the run.

    Raises:
      CommandError: the model is none that the scenes are for, or a method cannot do what is asked.
      Whatever `experiments.core.loading.load` raises.
    """

    def __init__(self, settings: Settings):
        self._seed, self._questions = settings.seed, SceneQuestions(settings.limit, settings.seed)
        self.checkpoint = loading.load(settings.model, dtype=settings.dtype, revision=settings.revision)
        self._llava = self.checkpoint.llava
        loading.check_square(settings.model, self._llava)
        self.cases = cases(self._llava, settings)
        prompt = self.prompt(range(1))
        for case in self.cases:  # before the first is compiled
            program = functools.partial(watched, plan=case.plan, decode_capacity=0, target=CPU)
            try:
                jax.eval_shape(program, self._llava, prompt, np.uint32(0))
            except (TypeError, ValueError) as error:
                raise CommandError(f"{case.method} cannot leave {case.kept} visual tokens: {error}") from error

    def prompt(self, indices: Sequence[int]) -> Prompt:
        """A batch of full size: the last question is repeated where there are fewer."""
        samples = [self._questions.sample(index) for index in [*indices, *[indices[-1]] * (BATCH - len(indices))]]
        inputs = self.checkpoint.encode([one.images for one in samples], [one.text for one in samples])
        return self._llava.prompt(**inputs.named, per_image=True, bucket=BUCKET)

    def ask(self, case: Case, prompt: Prompt, indices: Sequence[int]) -> dict[str, Any]:
        """What a method says, and for each question and layer the measures of what attention added.

        Raises:
          CommandError: what attention added is not finite.
        """
        seed = (self._seed * 1_000_003 + indices[0]) % 2**32  # that of `experiments.eval`
        tokens, outputs = answer(self._llava, prompt, case.plan, seed, new_tokens=MAX_NEW_TOKENS)
        entry: dict[str, Any] = {"said": self.checkpoint.decode(tokens)[: len(indices)]}
        for part, layers in zip(TOKENS, zip(*outputs, strict=True), strict=True):
            try:
                found = [measure(np.asarray(layer)[: len(indices)]) for layer in layers]
            except ValueError as error:
                raise CommandError(f"{case.method}: {error}; pass another --dtype") from error
            entry[part] = {
                "rank": np.stack([one.rank for one in found], axis=1).tolist(),
                "entropy": np.stack([one.entropy for one in found], axis=1).tolist(),
            }
        return entry


def run(settings: Settings, *, command: Sequence[str]) -> str:
    """Make a run, or go on with one.

    Args:
      settings: what to measure, and where to write.
      command: what is put on record as having asked for it.

    Returns:
      The table, what follows from it, and where everything else is.

    Raises:
      CommandError: the run cannot be made; says why.
      OSError: the folder cannot be written to, or another process does so.
    """
    with own_folder(settings.out):
        asker = Asker(settings)
        about = {
            **asker.checkpoint.identity,
            "dtype": settings.dtype,
            "methods": list(settings.methods),
            "own_methods": methods.own(cut.compressor for case in asker.cases for cut in case.plan.cuts),
            "visual_tokens": sorted({case.kept for case in asker.cases}),
            "seed": settings.seed,
            "batch_size": BATCH,
            "max_new_tokens": MAX_NEW_TOKENS,
            "tolerance": TOLERANCE,
            "machine": results.machine(),
            "versions": results.versions(),
            "code_sha256": results.code_checksum("experiments/attention_rank"),
        }
        journal = Journal(settings.out / "measured.jsonl", about, restart=settings.restart)
        if journal.entries:
            print(f"Going on from {journal.path}; --restart measures anew.", file=sys.stderr)
        _ask_all(asker, journal, settings.limit)
        return _write(settings, asker, journal, {"command": list(command), "settings": about})


def _key(entry: dict[str, Any]) -> tuple[int, str, int]:
    return entry["batch"], entry["method"], entry["visual_tokens"]


def _ask_all(asker: Asker, journal: Journal, scenes: int) -> None:
    """Have everything asked that the journal does not hold yet."""
    have = {_key(entry): len(entry["said"]) for entry in journal.entries}
    work = list(itertools.product(enumerate(SceneQuestions(scenes, 0).batches(BATCH)), asker.cases))

    def done(number: int, indices: Sequence[int], case: Case) -> bool:
        return have.get((number, case.method, case.kept), 0) >= len(indices)

    left = [(number, indices, case) for (number, indices), case in work if not done(number, indices, case)]
    prompt = functools.lru_cache(maxsize=1)(asker.prompt)  # methods take turns at a batch
    with tqdm(initial=len(work) - len(left), total=len(work), unit=" batches", file=sys.stderr, disable=None) as bar:
        for number, indices, case in left:
            bar.set_description(case.method)
            where = {"batch": number, "method": case.method, "visual_tokens": case.kept}
            journal.add(where | asker.ask(case, prompt(indices), indices))
            bar.update()


def _questions(settings: Settings) -> Iterator[dict[str, Any]]:
    questions = SceneQuestions(settings.limit, settings.seed)
    for index in range(len(questions)):
        one = questions.sample(index)
        yield {"sample": index, "family": one.family, "question": one.text, "answer": one.answer}


def _write(settings: Settings, asker: Asker, journal: Journal, head: dict[str, Any]) -> str:
    questions = list(_questions(settings))
    newest = {_key(entry): entry for entry in journal.entries}
    numbers = range(len(range(0, len(questions), BATCH)))
    rows = []
    said: dict[tuple[str, int], list[str]] = {}
    for case in asker.cases:
        entries = [newest[number, case.method, case.kept] for number in numbers]
        found = report.gather(entries, TOKENS, len(questions))
        said[case.method, case.kept] = found.said
        vanilla = said[BASELINE, asker.cases[0].kept]
        answers = [question["answer"] for question in questions]
        about = {"method": case.method, "place": case.place, "visual_tokens": case.kept}
        rows.append(about | report.row(found, answers, vanilla, first=TOKENCARVE_LAYER))
    correlations = report.correlations(rows, TOKENS, first=TOKENCARVE_LAYER)
    text = statement.text(rows, correlations, scenes=settings.limit, first=TOKENCARVE_LAYER)
    for question, words in zip(questions, zip(*said.values(), strict=True), strict=True):
        question["said"] = {f"{name} {kept}": word for (name, kept), word in zip(said, words, strict=True)}
    out = settings.out
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    value = {**head, "date": now, "model": settings.model, "scenes": settings.limit, "first_layer": TOKENCARVE_LAYER}
    results.write_json(
        out / "results.json", value | {"methods": rows, "correlations": correlations, "samples": questions}
    )
    results.write_text(out / "table.md", text + "\n")
    results.write_text(out / "layers.csv", report.csv_text(rows, TOKENS))
    figures.save(figures.accuracy_by_rank(rows, first=TOKENCARVE_LAYER), out / "accuracy.png")
    figures.save(figures.rank_by_layer(rows, first=TOKENCARVE_LAYER), out / "layers.png")
    return f"{text}\n\nEvery figure: {out / 'results.json'} and layers.csv; drawn: accuracy.png and layers.png."
