"""Reports without a browser: every kind of folder, what hostile texts become, and what is refused in one line."""

import html
import json
import re

import pytest

from experiments import report
from experiments.reports import html as html_report
from experiments.reports.html import rendering
from tests import reports
from tests.commands import failure

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" ' {{ 7 * 7 }} &amp; \u2028 \u202e"


@pytest.fixture
def folder(tmp_path):
    reports.evaluation(tmp_path)
    return tmp_path


def data(page, name):
    """What the page's script reads."""
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)[1])


def texts(page):
    """The cells of all tables."""
    return [html.unescape(text) for text in re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", page)]


class TestEvaluation:
    def test_numbers_are_those_of_the_results(self, folder):
        page = html_report.render(folder)
        assert {"91.2 % ± 1.9", "97.0 % ± 1.1", "55.1 % ± 3.2", "62.8 ms", "734 KiB"} <= set(texts(page))
        changed = json.loads((folder / "results.json").read_text())
        changed["methods"][1]["accuracy"]["overall"] |= {"share": 0.4321, "low": 0.4, "high": 0.5}
        changed["methods"][1]["prefill_s"] = 0.4567
        reports.write(folder, changed)
        page = html_report.render(folder)
        assert {"43.2 % ± 5.0", "457 ms"} <= set(texts(page))
        assert "91.2 % ± 1.9" not in page
        (tokens, compute, *_) = data(page, "charts").values()
        assert tokens["series"][1]["y"] == compute["series"][1]["y"] == [pytest.approx(43.21)]
        assert tokens["series"][1]["x"] == [128]
        assert compute["series"][1]["x"] == [pytest.approx(100 * 1.9 / 2.9)]

    def test_gallery(self, folder):
        found, given = data(html_report.render(folder), "scenes"), json.loads((folder / "results.json").read_text())
        assert found["every"] == 576
        assert [method["name"] for method in found["methods"]] == ["vanilla", "tokencarve", "random"]
        for scene, record in zip(found["scenes"], given["gallery"], strict=True):
            assert scene["question"] == record["question"]
            assert scene["ranks"] == record["ranks"]
            assert "vanilla" not in scene["maps"]
            for one in record["maps"][1:]:
                own = scene["maps"][one["method"]][str(one["visual_tokens"])]
                assert own == {"kept": one["kept"], "merged": one["merged"]}
            assert scene["said"] == {
                "vanilla": {"576": "LEAF"},
                "tokencarve": {"128": "LEAF"},
                "random": {"128": "LAKE"},
            }
            assert scene["image"].startswith("data:image/webp;base64,UklGR")

    def test_same_folder_same_page(self, folder):
        assert html_report.render(folder) == html_report.render(folder)
        path = html_report.write(folder)
        assert path == folder / "report.html"
        assert path.read_text() == html_report.render(folder)

    def test_images_and_gallery_may_be_missing(self, folder):
        (folder / "gallery" / "0.webp").unlink()
        assert data(html_report.render(folder), "scenes")["scenes"][0]["image"] is None
        given = json.loads((folder / "results.json").read_text())
        del given["gallery"]
        reports.write(folder, given)
        assert data(html_report.render(folder), "scenes") is None


class TestSafety:
    def test_hostile_texts_are_texts(self, folder):
        given = json.loads((folder / "results.json").read_text())
        for record in given["gallery"] + given["samples"]:
            record |= {"question": HOSTILE, "answer": HOSTILE, "family": HOSTILE}
        for sample in given["samples"]:
            sample["said"] = dict.fromkeys(sample["said"], HOSTILE)
        given |= {"model": HOSTILE, "command": HOSTILE, "date": HOSTILE}
        reports.write(folder, given)
        page = html_report.render(folder)
        assert "<img src=x" not in page
        assert "<script>alert" not in page
        assert "{{ 7 * 7 }}" in page
        assert data(page, "scenes")["scenes"][0]["question"] == HOSTILE

    def test_hostile_names_of_methods(self, folder):
        text = json.dumps(json.loads((folder / "results.json").read_text())).replace('"random"', json.dumps(HOSTILE))
        (folder / "results.json").write_text(text)
        page = html_report.render(folder)
        assert "<img src=x" not in page
        assert HOSTILE in texts(page)

    def test_only_our_scripts_may_run_and_nothing_may_be_loaded(self, folder):
        page = html_report.render(folder)
        policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page)[1])
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "data:"
        assert "unsafe" not in rules["script-src"]
        assert rules["script-src"].count("sha256-") == page.count("<script>")
        outside = page.replace(rendering._source("plotly.js"), "")
        assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", outside)
        assert set(re.findall(r"https?://[^\s\"'<>)]+", outside)) <= {"http://www.w3.org/2000/svg"}

    def test_an_image_has_the_name_of_its_question(self, folder):
        given = json.loads((folder / "results.json").read_text())
        given["gallery"][0]["sample"] = "../../../../etc/passwd"
        reports.write(folder, given)
        with pytest.raises(html_report.rendering.CommandError, match="damaged"):
            html_report.render(folder)


class TestSize:
    def test_three_hundred_scenes_fit(self, tmp_path):
        reports.evaluation(tmp_path, scenes=300)
        path = html_report.write(tmp_path)
        assert len(data(path.read_text(), "scenes")["scenes"]) == 300
        assert path.stat().st_size < 15e6

    def test_a_gallery_is_cut_short_before_the_page_is_too_large(self, folder, monkeypatch):
        scripts = sum(len(rendering._source(name)) for name in rendering._SCRIPTS)
        two = data(html_report.render(folder), "scenes")["scenes"][:2]
        monkeypatch.setattr(rendering, "LIMIT", scripts + len(json.dumps(two, **rendering._COMPACT)) + 500)
        page = html_report.render(folder)
        assert len(data(page, "scenes")["scenes"]) == 2
        assert "1 more scenes are in results.json" in page


class TestOtherFolders:
    def test_any_records_become_tables(self, tmp_path):
        rows = [{"target": "a <b>", "value": {"share": 0.5, "of": 3}}, {"target": "c", "other": None}]
        reports.write(tmp_path, {"command": "x", "rows": rows, "seconds": 1.25, "settings": {"seed": 3}})
        page = html_report.render(tmp_path)
        assert {"target", "value.share", "value.of", "a <b>", "0.5", "3", "seconds", "1.25"} <= set(texts(page))

    def test_the_papers_benchmarks(self, tmp_path):
        cell = {"method": "tokencarve-128", "here": 61.23, "of_vanilla": 0.956, "paper": 60.1, "paper_of_vanilla": 0.94}
        row = {"label": "GQA", "vanilla": 64.0, "llava": 62.0, "paper": 61.9, "carved": [cell]}
        empty = {"label": "POPE", "vanilla": None, "llava": 85.9, "paper": None}
        empty["carved"] = [dict.fromkeys(cell, None) | {"method": "tokencarve-128"}]
        averages = [{"of_vanilla": 0.956, "sets": 1, "here": 0.956, "paper": 0.94, "both": 1}]
        about = {"skipped": {"pope": "no data"}, "failed": {}, "errors": [], "scores": {}, "settings": {}}
        reports.write(tmp_path, {"command": ["x"], "rows": [row, empty], "averages": averages, **about})
        page = html_report.render(tmp_path)
        assert {"GQA", "61.2", "95.6 %", "60.1", "94.0 %", "POPE", "n/a"} <= set(texts(page))
        assert "pope: no data." in page
        (chart,) = data(page, "charts").values()
        assert chart["names"] == ["GQA"]
        assert chart["series"] == [{"name": "tokencarve-128", "values": [pytest.approx(95.6)]}]

    def test_numbers_that_are_none(self, tmp_path):
        (tmp_path / "results.json").write_text('{"rows": [{"a": NaN, "b": Infinity, "c": 1.5}]}')
        assert "1.5" in texts(html_report.render(tmp_path))


class TestCommand:
    def test_prints_where_the_page_is(self, folder, capsys):
        assert report.main([str(folder)]) == 0
        assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
        assert (folder / "report.html").is_file()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (None, "has no results.json"),
            ("", "cannot be read as JSON"),
            ('{"methods": [', "cannot be read as JSON"),
            ("[1, 2]", "it holds no fields"),
            ("[" * 100_000, "cannot be read as JSON"),
            (
                '{"methods": [], "samples": [], "settings": {"keep": 1}}',
                "is damaged, or was written by another version",
            ),
            ('{"methods": 3, "samples": [], "settings": {"keep": 1}}', "is damaged, or was written by another version"),
            ('{"rows": [{"cell": 1, "basis": 2}]}', "is damaged, or was written by another version"),
            ('{"cells": [{"batch": 1}], "floors": {}}', "is damaged, or was written by another version"),
            ('{"correlations": [], "methods": [{}]}', "is damaged, or was written by another version"),
        ],
    )
    def test_damage_is_one_line(self, tmp_path, capsys, text, said):
        if text is not None:
            (tmp_path / "results.json").write_text(text)
        assert said in failure(report.main, [str(tmp_path)], capsys)
        assert not (tmp_path / "report.html").exists()

    def test_no_such_folder(self, tmp_path, capsys):
        assert "no such folder" in failure(report.main, [str(tmp_path / "nowhere")], capsys)
