"""The documentation site: `sphinx-build -W docs FOLDER` (extra `docs`). Nothing is fetched, at build or by a reader."""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

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
default_role = "code"  # docstrings quote code in single backticks

html_theme = "furo"
html_title = f"tokencarve_jax {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # one image: compiling well takes longer than running badly
nb_execution_mode = "force"  # the notebook's outputs are those of this build
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autosummary_generate = ["api/carving.md", "api/compressors.md", "api/models.md"]
autosummary_imported_members = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
napoleon_attr_annotations = False


_ARRAY_LIKE = "Array | ndarray | bool | number | bool | int | float | complex"  # autodoc spells jax.typing.ArrayLike out


def _short(app: Any, what: str, name: str, thing: Any, options: Any, given: str | None, returned: str | None) -> Any:
    return given and given.replace(_ARRAY_LIKE, "ArrayLike"), returned


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-signature", _short)
