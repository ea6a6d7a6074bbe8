"""Values that no field expects, and ways to damage JSON and text."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    7,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    10**9,
    10**13,
    10**30,
    "",
    "x",
    "7",
    "\ud800",
    "x" * 5000,
    [],
    [None],
    [[]],
    [1, 2, 3],
    {},
    {"x": None},
    {"type": "x", "height": -1},
)


Path = tuple[str | int, ...]
"""Names of fields, and places in lists."""


def fields(config: Any, above: Path = ()) -> Iterator[Path]:
    """Paths to all fields, those of parts and of the first items of lists too."""
    for name, value in config.items() if isinstance(config, dict) else enumerate(config[:3]):
        yield (*above, name)
        if isinstance(value, (dict, list)):
            yield from fields(value, (*above, name))


def changed(config: Any, path: Path, value: Any) -> Any:
    """A copy with another value; `...` takes the field out."""
    found = copy.deepcopy(config)
    inner = found
    for name in path[:-1]:
        part = inner[name] if isinstance(inner, list) else inner.get(name)
        inner = part if isinstance(part, (dict, list)) else inner
    if value is ...:
        inner.pop(path[-1]) if isinstance(inner, list) else inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return found


def any_change(config: Any, generator: random.Random) -> tuple[str, bytes]:
    """Up to three fields changed, or the file itself damaged; says which."""
    text = json.dumps(config, indent=2).encode()
    if generator.random() < 0.3:
        how = generator.choice(("flip", "cut", "deep", "twice", "latin", "mark"))
        at = generator.randrange(len(text))
        damaged = {
            "flip": text[:at] + bytes([text[at] ^ 1 << generator.randrange(8)]) + text[at + 1 :],
            "cut": text[:at],
            "deep": text[:-2] + b', "x": ' + b"[" * 10 ** generator.randrange(2, 6),
            "twice": text + text[at:],
            "latin": text[:at] + b"\xe9\xff" + text[at:],
            "mark": b"\xef\xbb\xbf" + text,
        }
        return f"{how} at {at}", damaged[how]
    names = []
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        path, value = generator.choice(list(fields(config)) or [("new",)]), generator.choice((*VALUES, ...))
        config = changed(config, path, value)
        names.append(f"{'.'.join(map(str, path))} = {str(value)[:20]!r}")
    return ", ".join(names), json.dumps(config).encode()
