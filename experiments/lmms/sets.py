"""The paper's benchmarks: their tasks in lmms-eval, and what was published about LLaVA-1.5-7B on them.

LLaVA's figures: arXiv 2310.03744 and LLaVA's model zoo. TokenCarve's: arXiv 2503.10501, figure 1. Numbers of questions
are those of the sets' papers and cards; copies of a set differ by a few.
"""

from __future__ import annotations

import dataclasses
from typing import Any

JUDGE = "OPENAI_API_KEY"
"""The environment variable without which no judge answers."""
PUBLISHED_KEEP = 128
"""The visual tokens left in TokenCarve's published figures."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a set, as the table has it."""

    label: str  # its row
    metrics: tuple[str, ...] = ()  # names of lmms-eval's metrics, which are added up; empty is the first that there is
    scale: float = 1.0  # what that is multiplied by
    llava: float | None = None  # LLaVA-1.5-7B as LLaVA's authors publish it
    vanilla: float | None = None  # the same as TokenCarve's authors publish it
    carved: float | None = None  # TokenCarve's with `PUBLISHED_KEEP` tokens


@dataclasses.dataclass(frozen=True)
class Set:
    """One benchmark."""

    name: str  # on the command line
    task: str  # in lmms-eval, or in the folder `tasks` here
    folder: str | None  # where lmms-eval has it, below its `tasks`; None for those here
    figures: tuple[Figure, ...]  # the first is the one that averages are made of
    judged: bool = False  # answers are marked by a judge that is asked over the network
    questions: int | None = None  # of its split, as far as published; for plans alone
    note: str = ""  # where the protocol differs from the paper's, and what cannot be helped


def _set(name: str, task: str, folder: str | None, label: str, metric: str, *numbers: float, **more: Any) -> Set:
    """A set of one figure; `numbers` are its scale and what is published."""
    return Set(name, task, folder, (Figure(label, (metric,), *numbers),), **more)


_CHANGED = "marked by a judge that has changed since"
_MME = (
    Figure("MME", ("mme_perception_score", "mme_cognition_score"), 1, None, 1868.0, 1829.0),
    Figure("MME, perception", ("mme_perception_score",), 1, 1510.7),
)
_SETS = (
    Set("mme", "mme", "mme", _MME, questions=2374),
    _set(
        "mmbench", "mmbench_en_dev_llava", None, "MMBench", "gpt_eval_score", 1, 64.3, 64.6, 62.7, questions=4377,
        note="the dev split; answers that are no letter are matched by rules and not by a judge",
    ),
    _set(
        "pope", "pope", "pope", "POPE", "pope_f1_score", 100, 85.9, 86.1, 84.5, questions=9000,
        note="F1 of 9,000 questions together; LLaVA's is the mean over three splits of 8,910",
    ),
    _set("scienceqa", "scienceqa_img", "scienceqa", "ScienceQA", "exact_match", 100, 66.8, 69.5, 68.9, questions=2017),
    _set(
        "vizwiz", "vizwiz_vqa_val", "vizwiz_vqa", "VizWiz", "exact_match", 100, 50.0, 50.0, 51.0, questions=4319,
        note="the val split; published figures are of the test split, which a server marks",
    ),
    _set("textvqa", "textvqa_val_llava", None, "TextVQA", "exact_match", 100, 58.2, 58.2, 58.1, questions=5000),
    _set(
        "vqav2", "vqav2_val", "vqav2", "VQAv2", "exact_match", 100, 78.5, 78.5, 77.3, questions=214354,
        note="the val split; published figures are of test-dev, which a server marks",
    ),
    _set(
        "mmvet", "mmvet_llava", None, "MM-Vet", "gpt_eval_score", 1, 31.1, 31.0, 29.5,
        questions=218, judged=True, note=_CHANGED,
    ),
    _set("gqa", "gqa", "gqa", "GQA", "exact_match", 100, 62.0, questions=12578),
    _set("seed", "seedbench_llava", None, "SEED", "seed_all", 100, 58.6, questions=17990),
    _set(
        "llava-w", "llava_in_the_wild", "llava-in-the-wild", "LLaVA-W", "gpt_eval_llava_all", 1, 65.4, questions=60,
        judged=True, note=_CHANGED,
    ),
)  # fmt: skip
SETS = {one.name: one for one in _SETS}


def named(name: str) -> Set:
    """A set by its name, or a task of lmms-eval or of a folder of one's own, of which nothing is published.

    >>> named("pope").figures[0].llava, named("my_task").figures[0].llava
    (85.9, None)
    """
    return SETS.get(name) or Set(name, name, None, (Figure(name),))
