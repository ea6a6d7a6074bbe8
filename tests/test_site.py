"""The documentation site: it builds without a warning, has every public name and registry row, and fetches nothing."""

import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError
from sphinx.util.inventory import InventoryFile

import models.llava
import tokencarve_jax
from docs._ext.generated import command_names
from models.engine.plan import Cut
from tests.pages import PAGES, ROOT, prose
from tokencarve_jax import COMPRESSORS, EVIDENCE

MODELS = (
    "models.from_pretrained",
    "models.llava.Llava.from_pretrained",
    "models.llava.Llava.generate",
    "models.llava.Llava.stream",
    "models.llava.Llava.__call__",
    "models.llava.LlavaNext",
    "models.engine.plan.Cut",
    "models.relevance.Relevance",
    "models.convert.convert",
)


def build(folder, *more):
    """The site, as the pages say."""
    line = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "tree", *more]
    built = subprocess.run([*line, ROOT / "docs", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, but for what its notebook puts out."""
    return build(tmp_path_factory.mktemp("site"), "-D", "nb_execution_mode=off")


@pytest.fixture(scope="module")
def named(site):
    """Where the inventory says that names are: "page#anchor" by name."""
    found = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    kinds = [kind for kind in found.data if kind.startswith("py:")]
    return {name: item.uri for kind in kinds for name, item in found.data[kind].items()}


def soup(page):
    return BeautifulSoup(page.read_text(), "html.parser")


def table(site, page, number):
    """Rows of a page's table, as lists of cells."""
    rows = soup(site / page).find("article").find_all("table")[number].find_all("tr")[1:]
    return [[cell.get_text() for cell in row.find_all("td")] for row in rows]


def test_each_public_name_has_a_page_with_its_docstring(site, named):
    for name in tokencarve_jax.__all__:
        page, _, anchor = named[f"tokencarve_jax.{name}"].partition("#")
        entry = soup(site / page).find(id=anchor)
        assert entry is not None, name
        says = entry.find_next("dd").get_text()
        assert "Source" in says, name
        assert ">>> " in says, name


def test_public_names_of_the_models_are_there(named):
    assert set(MODELS) <= set(named)


def test_functions_say_shapes_and_errors():
    for name in tokencarve_jax.__all__:
        thing = getattr(tokencarve_jax, name)
        if not inspect.isfunction(thing):
            continue
        text = inspect.getdoc(thing)
        assert "Raises:" in text, name
        assert name in ("plan", "check") or re.search(r"\[.*[A-Z]\]", text), name  # neither takes arrays
    for method in ("__call__", "generate", "from_pretrained"):
        assert "Raises:" in inspect.getdoc(getattr(models.llava.Llava, method))
    assert "Attributes:" in inspect.getdoc(Cut)


def test_the_registry_has_each_row_with_place_evidence_and_paper(site):
    rows = {row[0]: row for row in table(site, "registry.html", 0)}
    assert set(rows) == set(COMPRESSORS)
    for name, compressor in COMPRESSORS.items():
        _, place, evidence, _, paper = rows[name]
        assert compressor.at in place, name
        assert set(re.findall(r"\w+", evidence.replace("(optional)", ""))) == set(compressor.evidence or ["nothing"])
        assert paper == (compressor.paper or "a control"), name


def test_the_evidence_is_listed_with_who_asks_for_it(site):
    rows = {row[0]: row[2] for row in table(site, "registry.html", 1)}
    assert set(rows) == set(EVIDENCE)
    for name, who in rows.items():
        assert set(re.findall(r"[\w-]+", who)) - {"none", "yet"} == {
            row.name for row in COMPRESSORS.values() if name in row.evidence
        }


def test_every_command_is_there_with_its_flags(site):
    text = soup(site / "commands.html").get_text()
    for name in command_names():
        assert f"usage: python -m {name}" in text
    assert "--keep FRACTION|COUNT" in text


def test_the_notebook_is_saved_with_what_it_puts_out():
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    text = "".join("".join(output.get("text", ())) for output in outputs)
    assert "What word is on the purple sign?" in text
    assert re.search(r"tokencarve\s+LEAF", text)
    assert sum("image/jpeg" in output.get("data", ()) for output in outputs) == 3


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    site = build(tmp_path)
    page = soup(site / "notebook.html")
    outputs = [node.get_text() for node in page.select(".cell_output")]
    assert any(re.search(r"tokencarve\s+LEAF", text) for text in outputs)
    maps = [image for image in page.select(".cell_output img") if (site / image["src"]).stat().st_size > 100_000]
    assert maps


def test_formulas_are_mathml_and_nothing_is_fetched(site):
    assert len(soup(site / "method.html").find_all("math")) > 20
    for page in site.rglob("*.html"):
        for node in soup(page).find_all(["script", "link", "img", "iframe"]):
            assert not str(node.get("src") or node.get("href") or "").startswith(("http:", "https:", "//")), (
                page,
                node,
            )
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    assert cited["title"].startswith(project["name"])
    bibtex = (ROOT / "docs" / "citation.md").read_text()
    assert f"{{{project['version']}}}" in bibtex
    for author in cited["references"][0]["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in " ".join(bibtex.split())


def test_a_mark_that_means_nothing_stops_the_build(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    fill = importlib.import_module("generated").fill
    with pytest.raises(ExtensionError, match="'nothing'"):
        fill("# Title\n\n<!-- generated: nothing -->\n")
    assert "fastv" in fill("<!-- generated: registry -->")


def test_pages_name_no_file_that_is_gone():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose(page)):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_figure_of_the_rooms_is_drawn_from_the_sources(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    architecture = importlib.import_module("architecture")
    assert architecture.FIGURE.read_text() == architecture.draw(), "python docs/_ext/architecture.py"
    with pytest.raises(ValueError, match="a -> b -> a"):
        architecture.floors({"a": {"b"}, "b": {"a"}})
