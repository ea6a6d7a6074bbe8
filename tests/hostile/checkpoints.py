"""A checkpoint's small files: config.json, generation_config.json, the processor's, the tokenizer's, the template."""

import dataclasses
import functools
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from models.auto import family_of, from_pretrained
from models.processor import load_processor
from tests.hostile.case import Case
from tests.hostile.images import mutate
from tests.hostile.values import any_change, changed

SMALL = (
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
)
TEMPLATES = (
    "{% for %}",
    "{{ nope.x }}",
    "{{ 1 / 0 }}",
    "{% for i in range(10**9) %}a{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 'x' * 10**8 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ raise_exception('no\n\nno') }}",
    "{% include '/etc/hostname' %}",
    "{% import 'os' as os %}",
    "no image at all",
)
# What config.json must never say, whatever else it does.
WRONG: tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...] = (
    (("text_config", "num_hidden_layers"), (0, -1, 10**9, 10**30, "x", [], None)),
    (("vision_config", "num_hidden_layers"), (0, -1, 10**9, 10**30, "x", [], None)),
    (("text_config", "hidden_size"), (0, -1, None, [], 10**9)),
    (("vision_config", "hidden_size"), (0, -1, None, [], 10**9)),
    (("text_config", "vocab_size"), (0, -1, None, [], 10**13)),
    (("text_config", "num_attention_heads"), (0, -1, None, [])),
    (("vision_config", "num_attention_heads"), (0, -1, None, [])),
    (("text_config", "head_dim"), (0, -1, [], "x")),
    (("vision_config", "patch_size"), (0, -1, None, [], [14, 14])),
    (("vision_config", "image_size"), (0, -1, None, [], 10**6)),
    (("text_config", "rope_parameters", "rope_theta"), ("x", 0, -1, None)),
    (("text_config", "rope_parameters"), ({"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}, [], "x")),
    (("text_config", "sliding_window"), ("x", 0, -1, [])),
    (("text_config", "max_position_embeddings"), ("x", 0, -1, None)),
    (("vision_feature_layer",), ([], [[]], "x", 99, None)),
    (("image_token_index",), (-1, 10**9, "x", None)),
    (("model_type",), ("bert", "", 7, None)),
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder whose small files are exchanged, case by case.

    Attributes:
      model: a good checkpoint.
      folder: the copy that is damaged.
    """

    model: Path
    folder: Path

    @classmethod
    def make(cls, model: Path, folder: Path) -> "Bench":
        shutil.copytree(model, folder)
        (folder / "generation_config.json").write_text('{"eos_token_id": 2, "pad_token_id": 3}')
        shutil.copyfile(folder / "generation_config.json", model / "generation_config.json")
        return cls(model, folder)

    def good(self, name: str) -> Any:
        text = (self.model / name).read_text()
        return json.loads(text) if name.endswith(".json") else text

    def load(self, name: str, data: bytes, *, weights: bool) -> None:
        """Read everything with one file exchanged."""
        path = self.folder / name
        path.write_bytes(data)
        try:
            family_of(self.folder)
            if weights:
                from_pretrained(self.folder, dtype=jnp.float32)
            else:
                load_processor(self.folder)
        finally:
            shutil.copyfile(self.model / name, path)

    def load_instead(self, name: str, kind: str) -> None:
        """Read everything with something in a file's place that is no file."""
        path = self.folder / name
        path.unlink()
        try:
            {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path.name)}[kind]()
            family_of(self.folder)
            if name == "model.safetensors":
                from_pretrained(self.folder)
            else:
                load_processor(self.folder)
        finally:
            path.rmdir() if kind == "folder" else path.unlink(missing_ok=True)
            shutil.copyfile(self.model / name, path)


def known(bench: Bench) -> Iterator[Case]:
    """What must work, and what must not."""
    good = bench.good("config.json")
    for name in ("config.json", *SMALL):
        data = (bench.model / name).read_bytes()
        yield Case(f"good {name}", functools.partial(bench.load, name, data, weights=name == "config.json"), "worked")
    for path, values in WRONG:
        for value in values:
            data = json.dumps(changed(good, path, value)).encode()
            attempt = functools.partial(bench.load, "config.json", data, weights=True)
            yield Case(f"config.json: {'.'.join(path)} = {str(value)[:40]}", attempt, "refused")
    for text in TEMPLATES:
        attempt = functools.partial(bench.load, SMALL[-1], text.encode(), weights=False)
        yield Case(f"template {text[:50]!r}", attempt, "refused")
    for field, values in {"eos_token_id": ([None], "x", 10**13, -1), "pad_token_id": ("x", 10**13, [])}.items():
        for value in values:
            data = json.dumps({field: value}).encode()
            attempt = functools.partial(bench.load, SMALL[0], data, weights=False)
            yield Case(f"generation_config {field} = {value}", attempt, "refused", "generation_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        for data in (b"null", b"[]", b"", b"\xff", b"{"):
            attempt = functools.partial(bench.load, name, data, weights=False)
            yield Case(f"{name} of {data!r}", attempt, "refused", name)
    for name in ("config.json", *SMALL, "model.safetensors"):
        for kind in ("folder", "pipe", "loop"):
            attempt = functools.partial(bench.load_instead, name, kind)
            yield Case(f"a {kind} for {name}", attempt, "refused", name)


def random_config(bench: Bench, generator: random.Random, number: int) -> Case:
    """config.json changed at random; what is left may be right."""
    said, data = any_change(bench.good("config.json"), generator)
    return Case(f"config.json {number}: {said}", functools.partial(bench.load, "config.json", data, weights=True))


def random_small_file(bench: Bench, generator: random.Random, number: int) -> Case:
    """Another file changed at random."""
    name = generator.choice(SMALL)
    if name in ("tokenizer.json", "chat_template.jinja"):
        said, data = "mutated", mutate((bench.model / name).read_bytes(), generator)
    else:
        said, data = any_change(bench.good(name), generator)
    return Case(f"{name} {number}: {said}", functools.partial(bench.load, name, data, weights=False))
