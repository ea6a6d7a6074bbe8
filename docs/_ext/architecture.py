"""Draws the rooms of the house and who imports whom, from the sources: `python docs/_ext/architecture.py`."""

import ast
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "figures" / "architecture.svg"
PACKAGES = ("experiments", "models", "tokencarve_jax")
COLOURS = {"experiments": "#e8eaf6", "models": "#e0f2f1", "tokencarve_jax": "#fff3e0"}
BASE = {"models.errors", "models.config", "models.interrupts", "models.compile_cache", "models.cli"}
BOX, GAP, ROW, WIDTH = (196, 36), 16, 84, 900


def room_of(module: str) -> str:
    """A subpackage, or what stands in the package itself: for `models` on top of its subpackages, or below them."""
    package, *rest = module.split(".")
    if package == "tokencarve_jax":
        return package
    if rest and (ROOT / package / rest[0]).is_dir():
        return f"{package}.{rest[0]}"
    return f"{package} (base)" if module in BASE else package


def sources() -> dict[str, Path]:
    """Files by dotted name."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """Modules of the house that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(known) or {node.module}
    return found & set(known)


def rooms() -> dict[str, set[str]]:
    """The rooms, each with those that it imports."""
    files, edges = sources(), dict[str, set[str]]()
    for module, path in files.items():
        room = room_of(module)
        edges.setdefault(room, set()).update(
            room_of(other) for other in imported(path, files) if room_of(other) != room
        )
    return edges


def floors(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """How many rooms stand below each, at most, one above the other. The arrows must have no circle."""

    def floor(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join([*above, room])}")
        return max((floor(other, (*above, room)) + 1 for other in edges.get(room, ())), default=0)

    return {room: floor(room) for room in edges}


def direct(edges: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no longer way explains."""

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(other) for other in edges.get(room, ())))

    return [
        (room, other)
        for room, others in edges.items()
        for other in sorted(others)
        if not any(other in reached(third) for third in others - {other})
    ]


def _package(room: str) -> str:
    return re.split(r"\W", room)[0]


def draw() -> str:
    """The figure as SVG."""
    edges = rooms()
    level = floors(edges)
    height = ROW * (max(level.values()) + 1)
    place = {}
    for floor in set(level.values()):
        row = sorted((room for room in level if level[room] == floor), key=lambda room: (_package(room), room))
        left = (WIDTH - len(row) * (BOX[0] + GAP) + GAP) / 2
        place |= {room: (left + i * (BOX[0] + GAP), height - ROW * (floor + 1) + 20) for i, room in enumerate(row)}
    arrows = "".join(
        f'<path d="M{x + BOX[0] / 2:.0f} {y + BOX[1]:.0f}C{x + BOX[0] / 2:.0f} {y + BOX[1] + 30:.0f} '
        f'{u + BOX[0] / 2:.0f} {v - 34:.0f} {u + BOX[0] / 2:.0f} {v - 3:.0f}"/>'
        for (x, y), (u, v) in ((place[room], place[other]) for room, other in direct(edges))
    )
    boxes = "".join(
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="{COLOURS[_package(room)]}"/>'
        f'<text x="{x + BOX[0] / 2:.0f}" y="{y + 23:.0f}">{escape(TITLES.get(room, room))}</text>'
        for room, (x, y) in place.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Rooms of the house; an arrow goes from a room to one that it imports" '
        'font-family="system-ui, sans-serif" font-size="14" text-anchor="middle">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0l8 4-8 4z" fill="#607d8b"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>'
        f'<g stroke="#607d8b" fill="none" stroke-width="1.3" marker-end="url(#tip)">{arrows}</g>'
        f'<g stroke="#37474f" stroke-width="0">{boxes}</g></svg>\n'
    )


TITLES = {
    "experiments": "experiments: commands",
    "models": "models: by model_type",
    "models (base)": "models: errors, config",
}

if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
