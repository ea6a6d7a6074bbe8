"""`python -m models.convert`: there and back bit by bit, all or nothing, and every error in one line."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers

from models import convert
from models.errors import CheckpointError
from models.io import orbax
from models.llava import Llava
from tests.checkpoints import Q_PROJ, assert_same_bits, edit, exported, published, save_small, small

STRANGE = {"generation_config.json": "{}", "tokenizer.model": "words", "chat_template.jinja": "{{ 1 }}"}
WEIGHT = "weights/decoder.layers.0.self_attn.q_proj.weight"
DEEP = "[" * 10**5 + "]" * 10**5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = save_small(tmp_path_factory.mktemp("hf"), shards=3)
    for name, text in STRANGE.items():
        (folder / name).write_text(text)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    dest = tmp_path_factory.mktemp("converted") / "dest"
    assert convert.main([str(source), str(dest)]) == 0
    return dest


@pytest.fixture
def copied(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "copied")


def fails(argv, capsys, dest=None):
    """The one line of a command that must fail, and nothing left behind."""
    capsys.readouterr()
    assert convert.main(list(map(str, argv))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("python -m models.convert: error: ")
    assert "Traceback" not in err
    if dest is not None:
        assert not dest.exists()
        assert not list(dest.parent.glob(f"*{dest.name}.*"))
    return line


def test_what_else_is_copied_and_what_the_manifest_says(source, converted):
    names = {path.name for path in converted.iterdir()}
    assert names == {"config.json", "weights", "conversion.json", "SHA256SUMS", *STRANGE}
    assert all((converted / name).read_text() == text for name, text in STRANGE.items())
    manifest = json.loads((converted / "conversion.json").read_text())
    files = manifest.pop("files")
    assert manifest == {"source": str(source), "revision": None, "dtype": "float32", "mapping": 1}
    for name in ["config.json", *STRANGE, *(path.name for path in source.glob("*.safetensors"))]:
        assert files.pop(name) == hashlib.sha256((source / name).read_bytes()).hexdigest()
    assert files == {}


def test_a_snapshot_of_the_hub(source, tmp_path, monkeypatch):
    """Links into the cache are followed, and the revision is recorded."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    shutil.copytree(source, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    asked = []
    monkeypatch.setattr(
        convert.hub, "find_checkpoint", lambda name, **options: asked.append((name, options)) or snapshot
    )
    assert convert.main(["some/model", str(tmp_path / "dest"), "--revision=v2", "--dtype=bfloat16"]) == 0
    assert asked == [("some/model", {"revision": "v2"})]
    manifest = orbax.read_manifest(tmp_path / "dest")
    assert (manifest["source"], manifest["revision"], manifest["dtype"]) == ("some/model", "0123abc", "bfloat16")
    assert not (tmp_path / "dest" / "tokenizer.model").is_symlink()


def test_other_links_are_refused(source, tmp_path, capsys):
    """What a stranger's checkpoint points to on this machine must not be copied."""
    folder, dest = shutil.copytree(source, tmp_path / "hf"), tmp_path / "dest"
    (tmp_path / "secret").write_text("{}")
    (folder / "extra.json").symlink_to(tmp_path / "secret")
    assert "extra.json is a link out of" in fails([folder, dest], capsys, dest)


def test_back_to_safetensors_that_transformers_loads(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(convert.write_safetensors, "__kwdefaults__", {"shard_bytes": 50_000})
    back = tmp_path / "back"
    assert convert.main([str(converted), str(back), "--to-hf"]) == 0
    assert len(list(back.glob("*.safetensors"))) >= 3
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert not any(info.values())
    assert again.state_dict().keys() == small().state_dict().keys()
    for key, value in small().state_dict().items():
        assert again.state_dict()[key].dtype == value.dtype
        assert torch.equal(again.state_dict()[key], value), key
    assert (back / "tokenizer.model").read_text() == "words"
    assert not (back / "conversion.json").exists()
    assert_same_bits(exported(Llava.from_pretrained(back)), published())


def test_half_precision_there_and_back(source, tmp_path):
    """What config.json says of the dtype is what the weights are."""
    folder = shutil.copytree(source, tmp_path / "hf")
    edit(folder / "config.json", {"dtype": "float32"})
    assert convert.main([str(folder), str(tmp_path / "dest"), "--dtype=bfloat16"]) == 0
    assert convert.main([str(tmp_path / "dest"), str(tmp_path / "back"), "--to-hf"]) == 0
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, small().lm_head.weight.to(torch.bfloat16))


# Reading converted folders


def test_from_pretrained_reads_it_bit_by_bit(converted):
    assert_same_bits(exported(Llava.from_pretrained(converted)), published())
    half = exported(Llava.from_pretrained(converted, dtype=jnp.bfloat16))
    assert_same_bits(half, {key: value.astype(ml_dtypes.bfloat16) for key, value in published().items()})


def test_orbax_alone_reads_it(converted):
    tree = ocp.PyTreeCheckpointer().restore((converted / orbax.WEIGHTS).absolute())
    got = tree["decoder"]["layers"]["0"]["self_attn"]["q_proj"]["weight"]
    np.testing.assert_array_equal(got, published()[Q_PROJ])


def test_weights_are_restored_to_their_places_on_a_mesh(converted):
    mesh = jax.make_mesh((1,), ("model",))
    weight = Llava.from_pretrained(converted, mesh=mesh).decoder.layers[0].self_attn.q_proj.weight[...]
    assert weight.sharding.spec == jax.sharding.PartitionSpec("model", None)


def test_converted_folders_that_do_not_fit_their_config(copied):
    edit(copied / "config.json", {"text_config": {"num_hidden_layers": 2, "intermediate_size": 71}})
    with pytest.raises(CheckpointError, match=r"missing weight decoder\.layers\.1\.") as caught:
        Llava.from_pretrained(copied)
    assert len(caught.value.problems) == 9 + 3
    shape = "decoder.layers.0.mlp.up_proj.weight has shape [70, 42]; config.json asks for [71, 42]"
    assert shape in caught.value.problems


DAMAGES = {
    "no weights": ("weights", shutil.rmtree, "weights is damaged or incomplete"),
    "no metadata": ("weights/_METADATA", lambda path: path.unlink(), "weights is damaged or incomplete"),
    "deep metadata": ("weights/_METADATA", lambda path: path.write_text(DEEP), "weights is damaged or incomplete"),
    "no array": (WEIGHT, shutil.rmtree, "weights is damaged or incomplete"),
    "deep description": (f"{WEIGHT}/.zarray", lambda path: path.write_text(DEEP), "bytes; at most 16384 are read"),
    "missing chunk": (f"{WEIGHT}/0.0", lambda path: path.unlink(), "0.0 does not exist"),
    "truncated chunk": (f"{WEIGHT}/0.0", lambda path: path.write_bytes(path.read_bytes()[:-7]), "bytes; expected"),
    "long chunk": (f"{WEIGHT}/0.0", lambda path: path.write_bytes(path.read_bytes() + b"x"), "are read"),
    "pipe": (f"{WEIGHT}/0.0", lambda path: path.unlink() or os.mkfifo(path), "is a pipe"),
    "NaN": (f"{WEIGHT}/0.0", lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "holds NaN or infinity"),
    "no JSON": ("conversion.json", lambda path: path.write_text("{"), "cannot be read"),
    "deep JSON": ("conversion.json", lambda path: path.write_text(DEEP), "cannot be read"),
    "no mapping": ("conversion.json", lambda path: path.write_text("{}"), "mapping None"),
    "another mapping": ("conversion.json", lambda path: path.write_text('{"mapping": 0}'), "Convert it again"),
    "no dtype": ("conversion.json", lambda path: path.write_text('{"mapping": 1}'), "has dtype None; expected float32"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_converted_folders_that_are_damaged(copied, capfd, how):
    """One line, also of the reads that Orbax cancels; the way back sees the same."""
    name, damage, said = DAMAGES[how]
    damage(copied / name)
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        Llava.from_pretrained(copied)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    if how in ("NaN", "no dtype"):
        with pytest.raises(CheckpointError, match=re.escape(said)):
            convert.to_hf(copied, copied.with_name("hf"))


# All or nothing


def test_everything_that_is_wrong_is_in_one_line(tmp_path, capsys):
    folder, dest = tmp_path / "hf", tmp_path / "dest"
    folder.mkdir()
    norm = "language_model.model.norm.weight"
    changes = {norm: None, "extra": torch.ones(2), Q_PROJ: torch.ones(5, 42, dtype=torch.int8)}
    save_small(folder, shards=3, **changes)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    lost = sorted(set(index.values()) - {index[Q_PROJ]})[0]
    (folder / lost).unlink()
    line = fails([folder, dest], capsys, dest)
    said = ("5 problems", f"{lost} is missing", f"missing weight {norm}", "surplus weight extra", "dtype I8", "[5, 42]")
    assert [words for words in said if words not in line] == []
    change = {"text_config": {"model_type": "gemma"}, "vision_config": {"hidden_act": "tanh"}}
    edit(folder / "config.json", change | {"projector_hidden_act": "gelo"})
    line = fails([folder, dest], capsys, dest)
    said = ("4 problems", "'gemma'", "hidden_act is 'tanh'", "hidden_act is 'gelo'", f"{lost} is missing")
    assert [words for words in said if words not in line] == []


def test_numbers_that_are_wrong_are_found_while_writing_and_leave_nothing(tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    folder, dest = save_small(tmp_path / "hf", **{Q_PROJ: torch.full((60, 42), float("nan"))}), tmp_path / "dest"
    assert f"{Q_PROJ} holds NaN or infinity" in fails([folder, dest], capsys, dest)


def test_a_disk_that_has_no_room(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 10**6))
    line = fails([source, tmp_path / "dest"], capsys, tmp_path / "dest")
    assert re.search(r"dest needs 0\.\d\d GB, but its disk has only 0\.00 GB left", line)


def test_a_disk_that_fills_up(source, converted, tmp_path, capsys):
    """No file may grow above 8 KB: what the operating system says of a full disk, it says of this in the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        for argv in ([source, tmp_path / "dest"], [converted, tmp_path / "dest", "--to-hf"]):
            assert "dest cannot be written: " in fails(argv, capsys, tmp_path / "dest")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_killed_process_left_does_not_look_complete_and_is_removed(source, converted, tmp_path):
    dest, unfinished = tmp_path / "dest", shutil.copytree(converted, tmp_path / f"dest.unfinished-{'0' * 32}")
    (unfinished / "conversion.json").unlink()  # it is written after the weights
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors"):
        Llava.from_pretrained(unfinished)
    assert convert.main([str(source), str(dest)]) == 0
    assert list(tmp_path.iterdir()) == [dest]
    assert_same_bits(exported(Llava.from_pretrained(dest)), published())


SLOW = """
import signal, sys, time
from models import convert
signal.signal(signal.SIGINT, signal.default_int_handler)  # which children of a background shell do not have
read = convert.read_weights
def crawl(*args, **options):
    for i, item in enumerate(read(*args, **options)):
        time.sleep(600 * (i == 9))
        yield item
convert.read_weights = crawl
sys.exit(convert.main(sys.argv[1:]))
"""


def test_an_interrupt_leaves_nothing(source, tmp_path):
    argv = [sys.executable, "-c", SLOW, source, tmp_path / "dest"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("dest.unfinished-*/weights*/*/.zarray"))) < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].endswith("interrupted; nothing was written")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(source, converted, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    assert "exists already" in fails([source, tmp_path / "full"], capsys)
    assert "there is no folder" in fails([source, tmp_path / "a" / "b"], capsys)
    assert list(tmp_path.iterdir()) == [tmp_path / "full"]
    assert "is not a folder that this command converted" in fails([source, tmp_path / "x", "--to-hf"], capsys)
    assert "is a converted folder already" in fails([converted, tmp_path / "x"], capsys)
    assert "goes with neither" in fails([converted, tmp_path / "x", "--to-hf", "--dtype=float16"], capsys)
    assert "is not a folder; expected one" in fails([tmp_path / "none" / "a", tmp_path / "x"], capsys)
