"""The documentation site: `sphinx-build -W docs FOLDER` (extra `docs`). Nothing is fetched, at build or by a reader."""

import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from jax.typing import ArrayLike
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "tokencarve_jax"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
project_copyright = "the tokencarve_jax authors, Apache-2.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "generated",
    "mathml",
]
exclude_patterns = ["_ext", "_build", "_templates"]
templates_path = ["_templates"]
default_role = "py:obj"  # docstrings quote code in single backticks; names that have a page become links

html_theme = "furo"
html_title = f"tokencarve_jax {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # one image: compiling well takes longer than running badly
nb_execution_mode = "force"  # the notebook's outputs are those of this build
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"

shutil.rmtree(ROOT / "docs" / "api" / "names", ignore_errors=True)  # of names that are gone, too
autosummary_generate = ["api/carving.md", "api/compressors.md", "api/models.md"]
autosummary_imported_members = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
napoleon_attr_annotations = False


_ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")  # autodoc spells it out


def _short(app: Any, what: str, name: str, thing: Any, options: Any, given: str | None, returned: str | None) -> Any:
    return given and given.replace(_ARRAY_LIKE, "ArrayLike"), returned


def _of_its_module(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A table's docstring stands where it is made, and not where it is imported."""
    attribute = name.rpartition(".")[2]
    for home in ("tokencarve_jax.registry", "tokencarve_jax.compressor") if what == "data" else ():
        lines += ModuleAnalyzer.for_module(home).find_attr_docs().get(("", attribute), [])


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", _of_its_module, priority=400)  # before napoleon reads it
    app.connect("autodoc-process-signature", _short)
