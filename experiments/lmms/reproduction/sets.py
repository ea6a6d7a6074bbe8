"""The paper's benchmarks: their tasks in lmms-eval, and what was published about LLaVA-1.5-7B on them.

LLaVA's figures: arXiv 2310.03744 and LLaVA's model zoo. TokenCarve's: arXiv 2503.10501, figure 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

JUDGE = "OPENAI_API_KEY"
"""The environment variable without which no judge answers."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a set, as the table has it.

    Attributes:
      label: its row.
      metrics: names of lmms-eval's metrics, which are added up.
      scale: what that is multiplied by.
      llava: LLaVA-1.5-7B as LLaVA's authors publish it.
      vanilla: the same as TokenCarve's authors publish it.
      carved: TokenCarve's by the tokens left.
    """

    label: str
    metrics: tuple[str, ...] = ()
    scale: float = 100.0
    llava: float | None = None
    vanilla: float | None = None
    carved: Mapping[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Set:
    """One benchmark.

    Attributes:
      name: on the command line.
      task: in lmms-eval, or in the folder `tasks` here.
      folder: where lmms-eval has it, below its `tasks`; None for those here.
      figures: the first is the one that averages are made of.
      judged: answers are marked by a judge that is asked over the network.
      note: where the protocol differs from the paper's, and what cannot be helped.
    """

    name: str
    task: str
    folder: str | None
    figures: tuple[Figure, ...]
    judged: bool = False
    note: str = ""


SETS = {
    one.name: one
    for one in (
        Set(
            "mme",
            "mme",
            "mme",
            (
                Figure("MME", ("mme_perception_score", "mme_cognition_score"), 1.0, None, 1868.0, {128: 1829.0}),
                Figure("MME, perception", ("mme_perception_score",), 1.0, 1510.7),
            ),
        ),
        Set(
            "mmbench",
            "mmbench_en_dev_llava",
            None,
            (Figure("MMBench", ("gpt_eval_score",), 1.0, 64.3, 64.6, {128: 62.7}),),
            note="the dev split; answers that are no letter are matched by rules and not by a judge",
        ),
        Set(
            "pope",
            "pope",
            "pope",
            (Figure("POPE", ("pope_f1_score",), 100.0, 85.9, 86.1, {128: 84.5}),),
            note="F1 of 9,000 questions together; LLaVA's is the mean over three splits of 8,910",
        ),
        Set(
            "scienceqa",
            "scienceqa_img",
            "scienceqa",
            (Figure("ScienceQA", ("exact_match",), 100.0, 66.8, 69.5, {128: 68.9}),),
        ),
        Set(
            "vizwiz",
            "vizwiz_vqa_val",
            "vizwiz_vqa",
            (Figure("VizWiz", ("exact_match",), 100.0, 50.0, 50.0, {128: 51.0}),),
            note="the val split; published figures are of the test split, which a server marks",
        ),
        Set(
            "textvqa", "textvqa_val_llava", None, (Figure("TextVQA", ("exact_match",), 100.0, 58.2, 58.2, {128: 58.1}),)
        ),
        Set(
            "vqav2",
            "vqav2_val",
            "vqav2",
            (Figure("VQAv2", ("exact_match",), 100.0, 78.5, 78.5, {128: 77.3}),),
            note="the val split; published figures are of test-dev, which a server marks",
        ),
        Set(
            "mmvet",
            "mmvet_llava",
            None,
            (Figure("MM-Vet", ("gpt_eval_score",), 1.0, 31.1, 31.0, {128: 29.5}),),
            judged=True,
            note="marked by a judge that has changed since",
        ),
        Set("gqa", "gqa", "gqa", (Figure("GQA", ("exact_match",), 100.0, 62.0),)),
        Set("seed", "seedbench_llava", None, (Figure("SEED", ("seed_all",), 100.0, 58.6),)),
        Set(
            "llava-w",
            "llava_in_the_wild",
            "llava-in-the-wild",
            (Figure("LLaVA-W", ("gpt_eval_llava_all",), 1.0, 65.4),),
            judged=True,
            note="marked by a judge that has changed since",
        ),
    )
}


def named(name: str) -> Set:
    """A set by its name, or a task of lmms-eval or of a folder of one's own, of which nothing is published.

    >>> named("pope").figures[0].llava, named("my_task").figures[0].llava
    (85.9, None)
    """
    return SETS.get(name) or Set(name, name, None, (Figure(name, (), 1.0),))
