"""Who imports whom, read off the sources: rooms with arrows only downward, and no circles, of packages or modules."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("tokencarve_jax", "models", "experiments")
BASE = {f"models.{name}" for name in ("errors", "config", "cli", "interrupts", "compile_cache")}
# Rooms, lowest first; each imports from itself and from lines above it. What a line does not name more closely is in
# "models" or "experiments": the modules on top, commands among them.
ROOMS = (
    ("tokencarve_jax",),
    ("models base",),
    ("models.io", "models.nn"),
    ("models.engine",),
    ("models.families", "models.serving"),
    ("models",),
    ("experiments.core",),
    ("experiments.data", "experiments.metrics"),
    ("experiments.reports",),
    ("experiments.evaluation",),
    tuple(f"experiments.{name}" for name in ("comparison", "speed", "training", "attention_rank")),
    ("experiments.lmms", "experiments.studies"),
    ("experiments",),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# `models.from_pretrained` is the package's facade: it looks `models.auto` up when it is called.
FACADES = {("models", "models.auto")}
# Which device a program is for is decided outside of it: by the model for its caller, and by commands.
MAY_ASK = {
    ("models/engine/model.py", "_target"),
    ("models/io/orbax.py", "restore"),
    ("models/cli.py", "_missing_platform"),
}
ASKS = {"devices", "local_devices", "default_backend", "local_device_count", "device_count"}
FLOOR_ONE = {"jax", "numpy", "tokencarve_jax"}


def tracked():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split() if (ROOT / name).exists()]


@functools.cache
def sources():
    """Text by dotted name."""
    files = [Path(name) for name in tracked() if name.split("/")[0] in FLOORS]
    return {".".join(p.with_suffix("").parts).removesuffix(".__init__"): (ROOT / p).read_text() for p in files}


@functools.cache
def named(text):
    """(module, None) by `import`, (package, name) by `from`; inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def imports(text, known):
    """Modules that a source imports; `from package import module` is the module."""
    pairs = named(text)
    return {f"{module}.{name}" if f"{module}.{name}" in known else module for module, name in pairs}


def graph(texts):
    edges = {name: imports(text, set(texts)) for name, text in texts.items()}
    return {name: {to for to in all_of if (name, to) not in FACADES} for name, all_of in edges.items()}


def room(name):
    """That of a module of ours; None for the modules of others."""
    if name in BASE:
        return "models base"
    parts = name.split(".")
    return next((found for found in (".".join(parts[:2]), parts[0]) if found in LEVELS), None)


def upward(edges):
    """Imports from a room above, or from another one beside: packages beside each other cannot be in a circle."""

    def down(name, to):
        inside, at = room(name), room(to)
        return at in (inside, None) or LEVELS[at] < LEVELS[inside]

    return sorted(
        f"{name} imports {to}"
        for name, all_of in edges.items()
        for to in all_of
        if not down(name, to) or to.split(".")[0] in ("tests", "conftest")
    )


def circles(edges):
    """Modules that can be reached from themselves."""

    def reached(start):
        seen, left = set(), list(edges[start])
        while left:
            name = left.pop()
            if name in edges and name not in seen:
                seen.add(name)
                left += edges[name]
        return seen

    return sorted(name for name in edges if name in reached(name))


def foreign(edges):
    allowed = FLOOR_ONE | set(sys.stdlib_module_names)
    return [
        f"{name} imports {to}"
        for name, all_of in edges.items()
        if name.split(".")[0] == "tokencarve_jax"
        for to in all_of
        if to.split(".")[0] not in allowed
    ]


def private(texts):
    return [name for name, text in texts.items() if "jax._src" in text or "TYPE_CHECKING" in text]


def asking(path, text):
    """Functions that ask JAX for the machine's devices."""
    found = set()

    def look(node, inside):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = node.name
        if isinstance(node, ast.Attribute) and node.attr in ASKS and getattr(node.value, "id", "") == "jax":
            found.add((path, inside))
        for child in ast.iter_child_nodes(node):
            look(child, inside)

    look(ast.parse(text), "")
    return found


def test_arrows_point_downward():
    assert upward(graph(sources())) == []


def test_each_package_is_a_room():
    packages = {".".join(name.split("/")[:2]) for name in tracked() if name.count("/") > 1}
    assert {name for name in packages if name.startswith(("models.", "experiments."))} <= set(LEVELS)


def test_there_is_no_circle():
    assert circles(graph(sources())) == []


def test_the_method_needs_jax_and_numpy_alone():
    assert foreign(graph(sources())) == []


def test_nothing_private_and_nothing_for_type_checkers_only():
    assert private(sources()) == []


def test_no_file_is_long():
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in tracked()}
    assert {n: size for n, size in lengths.items() if size > 300 and n.split("/")[0] in FLOORS} == {}


def test_nobody_asks_for_the_device_while_tracing():
    found = set()
    for name in tracked():
        if name.split("/")[0] in ("tokencarve_jax", "models"):
            found |= asking(name, (ROOT / name).read_text())
    assert found <= MAY_ASK


@pytest.mark.parametrize(
    ("name", "line", "finds"),
    [
        ("tokencarve_jax.tokens", "import models.engine.plan", lambda texts: upward(graph(texts))),
        ("models.config", "from experiments import cli", lambda texts: upward(graph(texts))),
        ("models.io.table", "def f():\n    import models.nn.rotary", lambda texts: upward(graph(texts))),
        ("experiments.core.cli", "from experiments.data import scenes", lambda texts: upward(graph(texts))),
        ("experiments.evaluation.cells", "import experiments.eval", lambda texts: upward(graph(texts))),
        ("models.nn.rotary", "def f():\n    from models.nn import llama", lambda t: circles(graph(t))),
        ("tokencarve_jax.budget", "from tokencarve_jax import carve", lambda texts: circles(graph(texts))),
        ("tokencarve_jax.budget", "from flax import nnx", lambda texts: foreign(graph(texts))),
        ("models.config", "from jax._src import core", private),
        ("models.config", "from typing import TYPE_CHECKING", private),
        ("models.config", "def f():\n    return jax.devices()[0]", lambda texts: asking("x", texts["models.config"])),
    ],
)
def test_these_tests_can_fail(name, line, finds):
    texts = sources()
    assert not finds(texts)
    assert finds(texts | {name: f"{texts[name]}\n{line}\n"})
