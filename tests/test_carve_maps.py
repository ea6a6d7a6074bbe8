"""Patch maps: what a run records is what its cuts did, and the ranks are those that decided."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core import loading
from experiments.core.schedules import read as schedule_of
from experiments.data.scene_questions import SceneQuestions
from experiments.data.scenes import make_scene
from experiments.reports import gallery
from experiments.reports.patch_maps import maps, recorder
from models.errors import CommandError
from tests import oracle
from tests.commands import VISUAL
from tokencarve_jax import Tokens, plan
from tokencarve_jax.methods import tokencarve

KEEP, BATCH, SEED = 7, 3, 11
COUNT = VISUAL + 1  # a class token stands before the patches
SCHEDULES = {
    "vanilla": "",
    "tokencarve": f"tokencarve@2={KEEP}",
    "divprune": f"divprune@input={KEEP}",
    "two": "tokencarve@1=11 random@2=9",
}
BUDGETS = {name: [KEEP, 6] for name in SCHEDULES} | {"vanilla": [COUNT], "two": [9]}


@pytest.fixture(scope="module")
def recorded(llava_folder_full):
    """What a recorder finds about two rows of a batch, and what the library's own prefill does to them."""
    checkpoint = loading.load(str(llava_folder_full), dtype="float32")
    scenes = [make_scene("test", index) for index in range(BATCH)]
    inputs = checkpoint.encode([(s.image,) for s in scenes], [s.questions[0].text for s in scenes])
    given = {name: schedule_of(text.split()) if text else () for name, text in SCHEDULES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "OTHER_BUDGETS", (1 / 3,))  # each is a program to compile
        own = recorder.PatchMapRecorder(checkpoint.llava)
        found = own.record(given, inputs, seed=SEED, rows=[0, 2], decode_capacity=0)
    prompt = checkpoint.llava.prompt(**inputs.named)
    cuts = {name: checkpoint.llava.prefill(prompt, carve=cut or None, seed=SEED).cuts for name, cut in given.items()}
    return found, cuts


@pytest.mark.parametrize("name", SCHEDULES)
def test_maps_are_what_the_cuts_of_a_prefill_did(recorded, name):
    found, cuts = recorded
    by_budget, _ = found[name]
    assert list(by_budget) == BUDGETS[name]
    for kept, rows in by_budget.items():
        assert all(len(one["kept"]) in (kept, kept - 1) for one in rows)
    rows = by_budget[BUDGETS[name][0]]
    for one, row in zip(rows, (0, 2), strict=True):
        assert (one["kept"], dict(one["merged"])) == followed(cuts[name], row)
    assert rows[0] != rows[1] or name == "vanilla"


def followed(cuts, row):
    """What became of each patch, one after the other, by hand."""
    host = {token: token for token in range(COUNT)}  # the original token that each lives on in
    standing = list(range(COUNT))
    for cut in cuts:
        indices, assignment = np.asarray(cut.indices[row]), np.asarray(cut.assignment[row])
        for token, at in host.items():
            if at is not None:
                to = assignment[standing.index(at)]
                host[token] = standing[indices[to]] if to >= 0 else None
        standing = [standing[index] for index in indices]
    merged = {t - 1: max(h - 1, -1) for t, h in host.items() if h not in (None, t) and t}
    return [token - 1 for token in standing if token], merged


def test_ranks_decide_who_passes_stage_one(recorded):
    found, _ = recorded
    assert [name for name, (_, ranks) in found.items() if ranks] == ["tokencarve"]
    by_budget, ranks = found["tokencarve"]
    for kept, rows in by_budget.items():
        for one, rank in zip(rows, ranks, strict=True):
            passed = {i for i, place in enumerate(rank["fused"]) if place <= plan(COUNT, kept).survivors}
            assert passed == {*one["kept"], *dict(one["merged"])}


@pytest.mark.parametrize("options", [{}, {"attention_weight": 0.0, "information": "svd"}])
def test_ranks_against_plain_loops(options):
    rng = np.random.default_rng(3)
    tokens, attention = oracle.decaying(rng, 40, 24), rng.dirichlet(np.ones(40)).astype(np.float32)
    found = tokencarve.ranks(Tokens.of(jnp.asarray(tokens)), query_attention=jnp.asarray(attention), **options)
    by_attention, by_information = oracle.points(list(attention)), oracle.points(list(oracle.information(tokens)))
    weight = options.get("attention_weight", 0.5)
    both = [weight * a + (1 - weight) * c for a, c in zip(by_attention, by_information, strict=True)]
    for name, want in (("attention", by_attention), ("information", by_information), ("fused", oracle.points(both))):
        assert np.asarray(getattr(found, name)).tolist() == [41 - points for points in want], name


def test_a_map_and_back():
    survivors, assignment = np.array([1, 4, 6]), np.array([-1, 0, 0, -1, 1, 2, 2, 1, -1])
    found = maps.patch_map(survivors, assignment, first=0, patches=9)
    assert found == {"kept": [1, 4, 6], "merged": [[2, 1], [5, 6], [7, 4]]}
    for back, want in zip(maps.arrays_of(found, 9), (survivors, assignment), strict=True):
        np.testing.assert_array_equal(back, want)
    with pytest.raises(ValueError, match="10 patches are not a square grid"):
        maps.grid_of(10)


class _Set:
    """Questions by their groups; None cannot be read, a pair is about two images."""

    def __init__(self, *groups):
        self.groups = groups

    def __len__(self):
        return len(self.groups)

    def sample(self, index):
        group = self.groups[index]
        if group is None:
            raise CommandError("damaged")
        return SimpleNamespace(group=group, images=("",) * (2 if isinstance(group, tuple) else 1))


@pytest.mark.parametrize(
    ("groups", "count", "want"),
    [
        ([0, 0, 0, 1, 1, 1, 2], 3, [0, 3, 6]),
        ([0, 0, 0, 1, 1, 1], 4, [0, 3, 1, 2]),
        ([None, (7, 7), 5, 6], 3, [2, 3]),
        ([], 3, []),
    ],
)
def test_questions_that_are_shown(groups, count, want):
    assert gallery.choose(_Set(*groups), count) == want


def test_four_of_each_family_by_default():
    questions = SceneQuestions(300, 0)
    families = [questions.sample(index).family for index in gallery.choose(questions, gallery.DEFAULT)]
    assert {families.count(family) for family in families} == {4}


def test_the_gallery_on_the_disk(tmp_path):
    """An image for each record, and a picture of each family's first, with what the first method leaves."""
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    own = {"kept": [0, 3], "merged": [[1, 0]]}
    both = [{"method": "vanilla", "answered": True, "kept": [0, 1, 2, 3], "merged": []}]
    both += [{"method": "tome", "answered": answered, **own} for answered in (False, True)]
    records = [{"sample": i, "family": family, "grid": 2, "maps": both} for i, family in enumerate("bab")]
    gallery.save(records, [image] * 3, tmp_path)
    paths = gallery.draw(records, [image] * 3, ["vanilla", "tome"], tmp_path)
    assert paths == [tmp_path / "b.png", tmp_path / "a.png"]
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == {"0.webp", "1.webp", "2.webp"}
    assert paths[0].read_bytes() == paths[1].read_bytes()
