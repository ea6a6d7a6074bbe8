"""Reports without a browser: every kind of folder, what strangers' folders become, and what is refused in one line."""

import html
import json
import math
import os
import re

import pytest

from experiments import report
from experiments.reports import html as html_report
from experiments.reports import tables
from experiments.reports.html import reading, rendering
from models.errors import CommandError
from tests import reports
from tests.commands import failure

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" ' {{ 7 * 7 }} &amp; \u2028 \u202e"


@pytest.fixture
def folder(tmp_path):
    reports.evaluation(tmp_path)
    return tmp_path


@pytest.fixture
def change(folder):
    """Lets a function change results.json, and gives the page."""

    def changed(edit):
        given = json.loads((folder / "results.json").read_text())
        edit(given)
        reports.write(folder, given)
        return html_report.render(folder)

    return changed


def data(page, name):
    """What the page's script reads, which takes no NaN."""
    text = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)[1]
    return json.loads(text, parse_constant=lambda constant: pytest.fail(constant))


def texts(page):
    """The cells of all tables."""
    return [html.unescape(text) for text in re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", page)]


class TestEvaluation:
    def test_numbers_are_those_of_the_results(self, folder, change):
        page = html_report.render(folder)
        assert {"91.2 % ± 1.9", "97.0 % ± 1.1", "55.1 % ± 3.2", "62.8 ms", "734 KiB"} <= set(texts(page))

        def edit(given):
            given["methods"][1]["accuracy"]["overall"] |= {"share": 0.4321, "low": 0.4, "high": 0.5}
            given["methods"][1]["prefill_s"] = 0.4567

        page = change(edit)
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
            answers = {"vanilla": {"576": "LEAF"}, "tokencarve": {"128": "LEAF"}, "random": {"128": "LAKE"}}
            assert scene["predictions"] == answers
            assert scene["image"].startswith("data:image/webp;base64,UklGR")

    def test_same_folder_same_page_and_the_command_says_where(self, folder, capsys):
        assert report.main([str(folder)]) == 0
        assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
        assert (folder / "report.html").read_text() == html_report.render(folder)

    def test_images_and_gallery_may_be_missing(self, folder, change):
        (folder / "gallery" / "0.webp").unlink()
        assert data(html_report.render(folder), "scenes")["scenes"][0]["image"] is None
        assert data(change(lambda given: given.pop("gallery")), "scenes") is None


class TestSafety:
    def test_hostile_texts_are_texts(self, folder, change):
        text = (folder / "results.json").read_text().replace('"random"', json.dumps(HOSTILE))
        (folder / "results.json").write_text(text)

        def edit(given):
            for record in given["gallery"] + given["samples"]:
                record |= {"question": HOSTILE, "answer": HOSTILE, "family": HOSTILE}
            for sample in given["samples"]:
                sample["predictions"] = dict.fromkeys(sample["predictions"], HOSTILE)
            given.update({"model": HOSTILE, "command": HOSTILE, "date": HOSTILE})

        page = change(edit)
        assert "<img src=x" not in page
        assert "<script>alert" not in page
        assert "{{ 7 * 7 }}" in page
        assert data(page, "scenes")["scenes"][0]["question"] == HOSTILE
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

    @pytest.mark.parametrize(
        ("name", "how", "words"),
        [
            ("gallery/0.webp", "link", "is a link out of"),
            ("gallery", "link", "is a link out of"),
            ("results.json", "link", "is a link out of"),
            ("gallery/0.webp", "pipe", "is a pipe, not a file"),
            ("results.json", "pipe", "is a pipe, not a file"),
            ("gallery/0.webp", "text", "cannot be read as an image"),
        ],
    )
    def test_only_files_of_the_folder_are_read(self, folder, tmp_path_factory, capsys, name, how, words):
        path, other = folder / name, tmp_path_factory.mktemp("elsewhere") / "other"
        path.rename(other)
        if how == "link":
            path.symlink_to(other)
        elif how == "pipe":
            os.mkfifo(path)
        else:
            path.write_text("root:x:0:0:a secret")
        assert words in failure(report.main, [str(folder)], capsys)
        assert not (folder / "report.html").exists()

    def test_nothing_but_pixels_gets_in_from_an_image(self, folder):
        path = folder / "gallery" / "0.webp"
        clean = html_report.render(folder)
        path.write_bytes(path.read_bytes() + b"a secret")
        assert html_report.render(folder) == clean

    @pytest.mark.parametrize(
        "edit",
        [
            lambda given: given["gallery"][0].update(sample="../../../../etc/passwd"),
            lambda given: given["gallery"][0]["maps"][1]["kept"].append(576),
            lambda given: given["gallery"][0]["maps"][1]["merged"].append([1, -2]),
            lambda given: given["gallery"][0].update(grid=10**6),
        ],
    )
    def test_a_gallery_that_would_stop_the_script_is_damaged(self, change, edit):
        with pytest.raises(CommandError, match="damaged"):
            change(edit)


class TestNumbers:
    @pytest.mark.parametrize("text", ["1e308", "Infinity", "-Infinity", "NaN", "1e999", f"{10**309}"])
    def test_what_cannot_be_shown_is_named_and_the_rest_is_shown(self, folder, text):
        path = folder / "results.json"
        given = json.loads(path.read_text())
        given["methods"][1] |= {"prefill_s": "ODD", "flops": "ODD", "same_answer": "ODD"}
        given["methods"][2]["accuracy"]["overall"]["share"] = "ODD"
        given["gallery"][0]["ranks"]["tokencarve"]["fused"][3] = "ODD"
        path.write_text(json.dumps(given).replace('"ODD"', text))
        page = html_report.render(folder)
        assert "beyond any measure: methods[1].same_answer, methods[1].prefill_s, methods[1].flops, methods[2]." in page
        assert "gallery[0].ranks.tokencarve.fused[3]." in page
        assert {"91.2 % ± 1.9", "734 KiB"} <= set(texts(page))
        assert [scene["sample"] for scene in data(page, "scenes")["scenes"]] == [3, 6]
        (tokens, compute, same, *_) = data(page, "charts").values()
        assert compute["series"][1]["x"] == tokens["series"][2]["y"] == [None]
        assert same["series"][0]["values"][1] is None

    @pytest.mark.parametrize("what", ["cache_bytes", "prefill_s", "flops", "visual_tokens"])
    @pytest.mark.parametrize("value", [0, math.nan])
    def test_nothing_to_divide_by(self, change, what, value):
        page = change(lambda given: [row.update({what: value}) for row in given["methods"]])
        assert "91.2 % ± 1.9" in texts(page)
        data(page, "charts")

    def test_many_are_counted(self, change):
        page = change(lambda given: given.update(seconds=[math.inf] * 20))
        assert "seconds[7] and 12 more." in page

    def test_as_people_read_them(self):
        assert [tables.percent(share) for share in (0.912, None, math.nan)] == ["91.2 %", "n/a", "n/a"]
        assert [tables.points(*pair) for pair in ((-0.058, 0.015), (0.1, None), (None, None))] == [
            "-5.8 ± 1.5",
            "+10.0",
            "n/a",
        ]
        assert math.isnan(tables.ratio(1, 0))


class TestSize:
    def test_three_hundred_scenes_fit(self, tmp_path):
        reports.evaluation(tmp_path, scenes=300)
        path = html_report.write(tmp_path)
        assert len(data(path.read_text(), "scenes")["scenes"]) == 300
        assert path.stat().st_size < 15e6

    def test_a_gallery_is_cut_short_before_the_page_is_too_large(self, folder, monkeypatch):
        scripts = sum(len(rendering._source(name)) for name in rendering._SCRIPTS)
        two = data(html_report.render(folder), "scenes")["scenes"][:2]
        monkeypatch.setattr(rendering, "LIMIT", scripts + len(json.dumps(two, **rendering._JSON)) + 500)
        page = html_report.render(folder)
        assert len(data(page, "scenes")["scenes"]) == 2
        assert "1 more scenes are in results.json" in page


class TestOtherFolders:
    def test_any_records_become_tables(self, tmp_path):
        rows = [{"target": "a <b>", "value": {"share": 0.5, "of": 3}}, {"target": "c", "other": None}]
        reports.write(tmp_path, {"command": "x", "rows": rows, "seconds": 1.25, "settings": {"seed": 3}})
        page = html_report.render(tmp_path)
        assert {"target", "value.share", "value.of", "a <b>", "0.5", "3", "seconds", "1.25"} <= set(texts(page))

    @pytest.mark.parametrize("kind", [None, "bench-compiled", ["eval"]])
    def test_a_kind_that_is_not_known(self, change, kind):
        page = change(lambda given: given.update(kind=kind))
        assert {"tokencarve", "accuracy.overall.share"} <= set(texts(page))
        assert data(page, "scenes") is None

    def test_wide_and_long_tables_are_cut_short(self, tmp_path):
        rows = [{f"column {number}": "x" * 1000 for number in range(2000)}] + [{"column 0": ""}] * 500
        reports.write(tmp_path, {"rows": rows})
        page = html_report.render(tmp_path)
        assert "rows (the first 500 of 501, 50 of 2000 columns)" in page
        assert page.count("x" * 200) == 50

    def test_the_papers_benchmarks(self, tmp_path):
        cell = {"method": "tokencarve-128", "here": 61.23, "of_vanilla": 0.956, "paper": 60.1, "paper_of_vanilla": 0.94}
        row = {"label": "GQA", "vanilla": 64.0, "llava": 62.0, "paper": 61.9, "carved": [cell]}
        empty = {"label": "POPE", "vanilla": None, "llava": 85.9, "paper": None}
        empty["carved"] = [dict.fromkeys(cell, None) | {"method": "tokencarve-128"}]
        averages = [{"of_vanilla": 0.956, "sets": 1, "here": 0.956, "paper": 0.94, "both": 1}]
        about = {"kind": "reproduce", "skipped": {"pope": "no data"}, "failed": {}, "errors": []}
        reports.write(tmp_path, {"command": ["x"], "rows": [row, empty], "averages": averages, **about})
        page = html_report.render(tmp_path)
        assert {"GQA", "61.2", "95.6 %", "60.1", "94.0 %", "POPE", "n/a"} <= set(texts(page))
        assert "pope: no data." in page
        (chart,) = data(page, "charts").values()
        assert chart["names"] == ["GQA"]
        assert chart["series"] == [{"name": "tokencarve-128", "values": [pytest.approx(95.6)]}]


class TestDamage:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "has no results.json"),
            ("", "cannot be read as JSON"),
            ('{"methods": [', "cannot be read as JSON"),
            ("[1, 2]", "it holds no fields"),
            ("[" * 100_000, "cannot be read as JSON"),
            ('{"rows": ' + "[" * 900 + "]" * 900 + "}", None),
            ('{"kind": "eval", "methods": [], "samples": [], "settings": {}}', "is damaged, or was written by another"),
            ('{"kind": "questions", "methods": 3, "samples": []}', "is damaged, or was written by another version"),
            ('{"kind": "compare", "rows": [{"cell": 1, "basis": 2}]}', "is damaged, or was written by another version"),
            ('{"kind": "bench", "cells": [{"batch": 1}]}', "is damaged, or was written by another version"),
            ('{"kind": "rank", "correlations": [], "methods": [{}]}', "is damaged, or was written by another version"),
            ('{"settings": 5, "rows": []}', "is damaged, or was written by another version"),
        ],
    )
    def test_is_one_line(self, tmp_path, capsys, text, words):
        if text is not None:
            (tmp_path / "results.json").write_text(text)
        if words is None:
            assert report.main([str(tmp_path)]) == 0
            return
        assert words in failure(report.main, [str(tmp_path)], capsys)
        assert not (tmp_path / "report.html").exists()

    def test_no_such_folder(self, tmp_path, capsys):
        assert "no such folder" in failure(report.main, [str(tmp_path / "nowhere")], capsys)


def test_places_in_results():
    value = {"a": [{"b": 1}, 2], "c": {"d": [3]}}
    assert dict(reading.flat(value)) == {"a[0].b": 1, "a[1]": 2, "c.d[0]": 3}
    assert dict(reading.flat(value, lists=False)) == {"a": [{"b": 1}, 2], "c.d": [3]}
