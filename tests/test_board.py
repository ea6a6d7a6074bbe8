"""Several comparisons on one page, and why some do not stand beside one another."""

import json

import pytest

from experiments import report
from tests import reports
from tests.commands import failure

SETTINGS = {
    "kind": "compare",
    "conversation": "checkpoint",
    "seed": 0,
    "model_sha256": "1" * 64,
    "code_sha256": "2" * 64,
    "versions": {"jax": "0.10.2"},
    "machine": {"processor": "one", "backend": "cpu"},
}


def write(folder, names, *, shares=(0.5, 0.6, 0.7), settings=(), **more):
    rows = [reports.cell("vanilla", budget=None, basis=None, tokens=576, right=0.97)]
    for name, right in zip(("tokencarve", *names), shares, strict=False):
        rows.append(reports.cell(name, budget=64, basis="count", tokens=64, right=right))
    about = {"kind": "compare", "model": "tiny", "source": "300 held-out scenes", "date": "2026-11-30T00:00:00"}
    folder.mkdir()
    reports.write(folder, about | {"settings": SETTINGS | dict(settings), "rows": rows} | more)
    return str(folder)


def test_rows_of_all_folders_stand_in_one_order(tmp_path, capsys):
    other = {"machine": {"processor": "two", "backend": "cpu"}, "rounds": 3}
    folders = [
        write(tmp_path / "a", ["fastv"], shares=(0.5, 0.4)),
        write(tmp_path / "b", ["random"], shares=(0.5, 0.8)),
        write(tmp_path / "c", ["fastv"], shares=(0.5, 0.7), settings=other),
    ]
    out = tmp_path / "board.html"
    assert report.main(["--board", *folders, f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    table = page[page.index("<table") : page.index("</table>")]
    names = [table.index(text) for text in ("80.0 %", "70.0 %", "50.0 %", "40.0 %")]
    assert names == sorted(names)
    assert "tiny. Equal count: 64 visual tokens left" in page
    assert table.count("97.0 %") == 2  # vanilla of either machine


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (
            {"settings": {"conversation": "vicuna_v1", "seed": 1}},
            "differ in conversation, seed; a board has one protocol",
        ),
        ({"settings": {"code_sha256": "3" * 64}}, "differ in code_sha256; a board has one protocol"),
        ({"source": "30 held-out scenes"}, "differ in source; a board has one protocol"),
        ({"settings": {"model_sha256": "4" * 64}}, "call different weights 'tiny'; rename one of them"),
        ({"kind": "eval"}, "is of eval; a board takes folders of compare"),
        ({}, "both have fastv (fastv@2=64) on the same machine; leave one out"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, second, says):
    folders = [write(tmp_path / "a", ["fastv"]), write(tmp_path / "b", ["fastv"], **second)]
    argv = ["--board", *folders, f"--out={tmp_path / 'board.html'}"]
    assert says in failure(report.main, argv, capsys)
    assert not (tmp_path / "board.html").exists()


def test_a_folder_without_hashes_or_with_damage_is_refused(tmp_path, capsys):
    folder = write(tmp_path / "a", ["fastv"])
    path = tmp_path / "a" / "results.json"
    found = json.loads(path.read_text())
    del found["settings"]["code_sha256"]
    path.write_text(json.dumps(found))
    assert "code_sha256 missing; run compare again" in failure(report.main, ["--board", folder], capsys)
    found["settings"] = SETTINGS
    found["rows"] = [{"budget": 64}]
    path.write_text(json.dumps(found))
    assert "is damaged" in failure(report.main, ["--board", folder], capsys)
    assert "both have fastv" in failure(report.main, ["--board", *[write(tmp_path / "b", ["fastv"])] * 2], capsys)
