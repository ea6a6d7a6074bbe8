"""The evaluation: what it writes, that nothing is lost, and that what cannot work says so."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from experiments import compare
from experiments import eval as evaluation
from experiments.core import cli, loading
from experiments.data.scene_questions import SceneQuestions
from experiments.data.scenes import FAMILIES, make_scene
from experiments.evaluation.worker import ModelWorker
from experiments.reports import html as html_report
from experiments.reports.patch_maps.maps import arrays_of
from experiments.reports.pictures import GAP, enlarge
from models.engine import prefill
from tests.commands import DAMAGES, KEEPS, SIDE, VISUAL, answer_alone, damage, failure
from tokencarve_jax import plan

SCENES, BATCH, KEEP = 3, 4, 5
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(llava_folder):
    return llava_folder


@pytest.fixture(scope="module")
def flags(model):
    return [f"--model={model}", f"--keep={KEEP}", f"--limit={SCENES}", f"--batch-size={BATCH}", "--seed=1"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("results") / "deeper" / "whole"
    assert evaluation.main([*flags, f"--out={out}"]) == 0
    return out


def read(out):
    return json.loads((out / "results.json").read_text())


class TestResults:
    def test_files(self, whole):
        names = {path.name for path in whole.iterdir()}
        pictures = {f"{family}.png" for family in FAMILIES}
        assert names == {"answers.jsonl", "results.json", "table.txt", "report.html", "gallery", *pictures}
        assert {path.name for path in (whole / "gallery").iterdir()} == {f"{i}.webp" for i in range(3 * SCENES)}

    def test_questions_are_those_of_the_scenes(self, whole):
        samples = read(whole)["samples"]
        assert [sample["sample"] for sample in samples] == list(range(3 * SCENES))
        for scene in range(SCENES):
            questions = make_scene("test", scene, 1, questions=3).questions
            own = [sample for sample in samples if sample["scene"] == scene]
            assert [(q.family, q.text, q.answer) for q in questions] == [
                (sample["family"], sample["question"], sample["answer"]) for sample in own
            ]
            assert {sample["family"] for sample in own} == set(FAMILIES)

    def test_answers_are_those_of_the_model_asked_alone(self, whole, model):
        """Batching, padding and the repeated last row change nothing."""
        checkpoint = loading.load(str(model), dtype="float32")
        samples = read(whole)["samples"]
        for sample in (samples[1], samples[-1]):
            image = make_scene("test", sample["scene"], 1).image
            assert answer_alone(checkpoint, image, sample["question"], KEEP) == sample["predictions"]["tokencarve"]

    def test_methods_differ(self, whole):
        """Otherwise the other tests prove little."""
        samples = read(whole)["samples"]
        assert (
            len({tuple(s["predictions"][name] for s in samples) for name in ("vanilla", "tokencarve", "random")}) == 3
        )
        assert len({s["predictions"]["vanilla"] for s in samples}) > 3

    def test_numbers_follow_from_samples_and_journal(self, whole):
        report = read(whole)
        entries = [json.loads(line) for line in (whole / "answers.jsonl").read_text().splitlines()][1:]
        for row in report["methods"]:
            name = row["method"]
            seconds = [entry["prefill_s"][name] for entry in entries]
            assert row["prefill_s"] == median(seconds)
            assert row["prefill_runs"] == len(seconds) == len(entries)
            assert row["same_answer"] == np.mean(
                [s["predictions"][name] == s["predictions"]["vanilla"] for s in report["samples"]], dtype=float
            )
            assert row["visual_tokens"] == (VISUAL if name == "vanilla" else KEEP)
            # 3 layers, keys and values of 1 head x 12 x 4 bytes; 32 slots of the bucket and 32 for new tokens.
            slots = 32 + 32 - (VISUAL - row["visual_tokens"])
            assert row["cache_bytes"] == 3 * 2 * 12 * 4 * slots

    def test_setting_is_recorded(self, whole, flags):
        report = read(whole)
        assert report["command"] == ["python", "-m", "experiments.eval", *flags, f"--out={whole}"]
        assert report["settings"]["keep"] == KEEP
        assert set(report["settings"]["versions"]) >= {"python", "jax", "flax", "transformers", "tokencarve_jax"}
        assert report["settings"]["machine"]["cores"] >= 1

    def test_pictures_show_the_patches_that_were_kept(self, whole):
        side = len(enlarge(np.zeros((SIDE, SIDE, 3), np.uint8)))
        patch = side * 14 // SIDE
        for family in FAMILIES:
            page = np.asarray(Image.open(whole / f"{family}.png"))
            assert page.shape == (side, 3 * side + 2 * GAP, 3)
            image, *stages = (page[:, x : x + side] for x in (0, side + GAP, 2 * (side + GAP)))
            first, second = ((image == stage).all(-1).reshape(4, patch, 4, patch).all((1, 3)).sum() for stage in stages)
            assert first == plan(VISUAL, KEEP).survivors
            assert 1 <= second <= KEEP


class TestGallery:
    def test_maps_are_those_of_the_answers(self, whole, model):
        """Also of the method that draws: the batches and seeds are the same."""
        checkpoint, questions = loading.load(str(model), dtype="float32"), SceneQuestions(SCENES, 1)
        records = {record["sample"]: record for record in read(whole)["gallery"]}
        assert sorted(records) == list(range(3 * SCENES))
        for start in (0, BATCH):
            samples = [questions.sample(start + row) for row in range(BATCH)]
            inputs = checkpoint.encode([one.images for one in samples], [one.text for one in samples])
            prompt = checkpoint.llava.prompt(**inputs.named)
            for name in ("tokencarve", "random"):
                seed = 1_000_003 + start
                (cut,) = checkpoint.llava.prefill(prompt, carve=((2, name, KEEP),), seed=seed, decode_capacity=32).cuts
                for row in range(BATCH):
                    maps = [one for one in records[start + row]["maps"] if one["method"] == name]
                    assert [one["visual_tokens"] for one in maps if not one["answered"]] == [4, 2]
                    (one,) = (one for one in maps if one["answered"])
                    survivors, assignment = arrays_of(one, VISUAL)
                    np.testing.assert_array_equal(survivors, cut.indices[row])
                    np.testing.assert_array_equal(assignment, cut.assignment[row])

    def test_images_are_what_the_model_sees(self, whole):
        for record in read(whole)["gallery"]:
            image = np.asarray(Image.open(whole / "gallery" / f"{record['sample']}.webp"), float)
            seen = Image.fromarray(make_scene("test", record["scene"], 1).image).resize((SIDE, SIDE), Image.BICUBIC)
            assert np.abs(image - np.asarray(seen, float)).mean() < 12

    def test_facts_about_methods(self, whole):
        vanilla, carved, random = read(whole)["methods"]
        assert (carved["place"], carved["reads"]) == ("decoder layer 2", "query_attention")
        assert (random["place"], random["reads"]) == ("decoder layer 2", "key")
        assert carved["flops"] == random["flops"] < vanilla["flops"]

    def test_report(self, whole, flags, tmp_path):
        assert (whole / "report.html").read_text() == html_report.render(whole)
        assert evaluation.main([*flags, "--limit=1", "--gallery=2", "--no-report", f"--out={tmp_path}"]) == 0
        assert not (tmp_path / "report.html").exists()
        assert len(read(tmp_path)["gallery"]) == 2


def test_scenes_are_asked_as_the_flags_say(flags, whole, tmp_path):
    more = ["--conv-mode=vicuna_v1", "--max-new-tokens=3", "--limit=1", "--gallery=1", "--no-report"]
    more += ["--methods=tokencarve"]
    assert evaluation.main([*flags, *more, f"--out={tmp_path}"]) == 0
    report = read(tmp_path)
    assert (report["settings"]["conversation"], report["settings"]["max_new_tokens"]) == ("vicuna_v1", 3)
    before = read(whole)["samples"]
    assert [s["predictions"]["vanilla"] for s in report["samples"]] != [s["predictions"]["vanilla"] for s in before[:3]]


START = """
import collections, sys
import jax
from experiments import eval as evaluation
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rsplit("/", 1)[1]]))
status = evaluation.main(sys.argv[1:])
print(counts["compile_requests_use_cache"], counts["cache_hits"], "sklearn" in sys.modules)
sys.exit(status)
"""


def test_a_second_start_compiles_nothing(model, tmp_path):
    """Not the smallest program; and scikit-learn is not imported for two photographs."""
    cache = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "XDG_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(cache)}
    few = [f"--model={model}", "--keep=5", "--limit=1", "--methods=tokencarve", "--gallery=1", "--no-report"]
    found = []
    for start in ("first", "second"):
        run = subprocess.run(
            [sys.executable, "-c", START, *few, f"--out={tmp_path / start}"],
            env=env | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(run.stdout.split()[-3:])
    (programs, hits, *_), second = found
    assert int(programs) > int(hits)
    assert second == [programs, programs, "False"]


class TestResume:
    @pytest.fixture
    def asked(self, monkeypatch):
        """First questions of the batches that are asked; `stop_at` interrupts at such a batch."""
        asked, original = [], ModelWorker.answer

        def answer(self, questions, indices, *args, **options):
            if len(asked) == answer.stop_after:
                raise KeyboardInterrupt
            asked.append(indices[0])
            return original(self, questions, indices, *args, **options)

        answer.stop_after = None
        monkeypatch.setattr(ModelWorker, "answer", answer)
        return asked, answer

    def test_interrupted_run_goes_on(self, flags, whole, tmp_path, asked, capsys):
        asked, answer = asked
        out = tmp_path / "out"
        answer.stop_after = 2
        assert evaluation.main([*flags, f"--out={out}"]) == 130
        assert "the same command goes on" in capsys.readouterr().err
        assert not (out / "results.json").exists()
        with (out / "answers.jsonl").open("a") as file:
            file.write('{"indices": [8], "fou')  # torn
        answer.stop_after = None
        assert evaluation.main([*flags, f"--out={out}"]) == 0
        assert asked == [0, 4, 8]
        assert read(out)["samples"] == read(whole)["samples"]
        for line in (out / "answers.jsonl").read_text().splitlines():
            json.loads(line)
        for family in FAMILIES:
            assert (out / f"{family}.png").read_bytes() == (whole / f"{family}.png").read_bytes()

        before = read(out)
        assert evaluation.main([*flags, f"--out={out}"]) == 0  # complete already
        assert asked == [0, 4, 8]
        assert read(out) | {"date": ""} == before | {"date": ""}

    def test_more_scenes_build_on_fewer(self, flags, whole, tmp_path, asked):
        asked, _ = asked
        out = tmp_path / "out"
        for limit in (2, SCENES):
            assert evaluation.main([*flags, f"--limit={limit}", f"--out={out}"]) == 0
        assert asked == [0, 4, 4, 8]
        assert read(out)["samples"] == read(whole)["samples"]

    def test_restart(self, flags, tmp_path, asked):
        asked, _ = asked
        for more in ([], ["--restart"]):
            assert evaluation.main([*flags, "--limit=1", f"--out={tmp_path}", *more]) == 0
        assert asked == [0, 0]

    def test_other_settings_are_refused(self, flags, whole, capsys):
        before = {path: path.read_bytes() for path in whole.rglob("*.*")}
        line = failure(evaluation.main, [*flags, "--seed=2", "--keep=0.5", f"--out={whole}"], capsys)
        assert f"{whole} holds a run with other settings (keep, seed); pass another --out, or --restart" in line
        assert {path: path.read_bytes() for path in whole.rglob("*.*")} == before

    def test_another_kind_of_results_is_refused(self, flags, whole, tmp_path, capsys):
        for more in ([], ["--restart"]):
            argv = [flag for flag in flags if not flag.startswith("--keep")]
            line = failure(compare.main, [*argv, f"--out={whole}", *more], capsys)
            assert f"{whole} holds results of the kind 'eval', not 'compare'; pass another --out" in line
        shutil.copy(whole / "answers.jsonl", tmp_path)  # a run that was interrupted
        assert "kind 'eval'" in failure(compare.main, [*argv, f"--out={tmp_path}"], capsys)

    def test_smaller_last_batch_compiles_nothing(self, flags, tmp_path, monkeypatch):
        sizes, original = [], ModelWorker.answer

        def answer(*args, **options):
            entry = original(*args, **options)
            sizes.append(prefill.prefill._cache_size())
            return entry

        monkeypatch.setattr(ModelWorker, "answer", answer)
        assert evaluation.main([*flags, f"--out={tmp_path}"]) == 0
        assert len(sizes) == 3
        assert sizes[0] == sizes[-1]


class TestBadInput:
    @pytest.mark.parametrize("keep", KEEPS)
    def test_what_keep_is_not(self, keep):
        with pytest.raises(argparse.ArgumentTypeError, match="is neither a fraction"):
            cli.keep(keep)

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--keep=1.5"], "--keep: '1.5' is neither a fraction"),
            (["--keep=17"], "keep=17: keep as a count must be in 1..16"),
            (["--model=nowhere"], "nowhere: no such folder"),
            (["--limit=0"], "--limit"),
            (["--seed=-1"], "--seed"),
            (["--lim=3"], "--lim"),
            (["--dtype=int8"], "--dtype"),
        ],
    )
    def test_one_line_and_no_folder(self, model, tmp_path, capsys, flags, says):
        line = failure(evaluation.main, [f"--model={model}", *flags, f"--out={tmp_path / 'out'}"], capsys)
        assert says in line
        assert not (tmp_path / "out").exists()

    def test_damaged_checkpoint(self, model, tmp_path, capsys):
        """One kind of damage: all are tested where checkpoints are read."""
        folder = damage(model, tmp_path / "damaged", "truncated")
        line = failure(evaluation.main, [f"--model={folder}", f"--out={tmp_path / 'out'}"], capsys)
        assert DAMAGES["truncated"] in line
        assert not (tmp_path / "out").exists()

    def test_out_is_a_file(self, flags, tmp_path, capsys):
        (tmp_path / "out").write_text("mine")
        assert "there is a file of that name" in failure(evaluation.main, [*flags, f"--out={tmp_path / 'out'}"], capsys)
        assert (tmp_path / "out").read_text() == "mine"

    def test_as_a_process(self, tmp_path):
        argv = [sys.executable, "-m", "experiments.eval", f"--model={tmp_path}", f"--out={tmp_path / 'out'}"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "has no config.json" in done.stderr
        assert not (tmp_path / "out").exists()
