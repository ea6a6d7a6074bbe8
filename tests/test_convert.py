"""`python -m models.convert`: there and back bit by bit, all or nothing, and every error in one line."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers

from models import convert
from models.errors import CheckpointError
from models.io import orbax
from models.llava import Llava
from tests.checkpoints import Q_PROJ, exported, save_small, small, tensors
from tests.test_checkpoint import assert_same_bits

TIMEOUT = 300  # seconds of a process; on a busy machine it takes that long, and none may hang
STRANGE = {"generation_config.json": "{}", "tokenizer.model": "words", "chat_template.jinja": "{{ 1 }}"}


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


def published():
    return {key: value.numpy() for key, value in tensors(small()).items()}


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


def test_the_revision_of_a_snapshot_is_recorded(source, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(source, snapshot)
    asked = []

    def find(name, *, revision):
        asked.append((name, revision))
        return snapshot

    monkeypatch.setattr(convert.hub, "find_checkpoint", find)
    assert convert.main(["some/model", str(tmp_path / "dest"), "--revision=v2", "--dtype=bfloat16"]) == 0
    assert asked == [("some/model", "v2")]
    manifest = orbax.read_manifest(tmp_path / "dest")
    assert (manifest["source"], manifest["revision"], manifest["dtype"]) == ("some/model", "0123abc", "bfloat16")


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
    config = json.loads((source / "config.json").read_text())
    folder = tmp_path / "hf"
    shutil.copytree(source, folder)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert convert.main([str(folder), str(tmp_path / "dest"), "--dtype=bfloat16"]) == 0
    assert convert.main([str(tmp_path / "dest"), str(tmp_path / "back"), "--to-hf"]) == 0
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, small().lm_head.weight.to(torch.bfloat16))


# All or nothing

DAMAGES = {
    "truncated shard": "model-00002-of-00003.safetensors is damaged or incomplete",
    "missing shard": "model-00002-of-00003.safetensors is missing",
    "index that names an absent file": "model-00009-of-00003.safetensors is missing",
    "missing and surplus": f"2 problems: surplus weight extra: nothing in the model takes it; missing weight {Q_PROJ}",
    "shape": f"{Q_PROJ} has shape [5, 42]; config.json asks for [60, 42]",
    "dtype": f"{Q_PROJ} has dtype I8; expected one of F32, F16, BF16",
    "NaN": f"{Q_PROJ} holds NaN or infinity; language_model.model.norm.weight holds NaN or infinity",
    "architecture": "model_type is 'gemma'",
    "activation": "hidden_act is 'tanh'",
    "pickle": "holds its weights only as pickles (pytorch_model.bin), which can run any code",
}


def damage(folder, how):
    bad = {
        "missing and surplus": {Q_PROJ: None, "extra": torch.ones(2)},
        "shape": {Q_PROJ: torch.ones(5, 42)},
        "dtype": {Q_PROJ: torch.ones(60, 42, dtype=torch.int8)},
        "NaN": {
            Q_PROJ: torch.full((60, 42), float("nan")),
            "language_model.model.norm.weight": torch.full((42,), float("inf")),
        },
    }
    save_small(folder, shards=3, **bad.get(how, {}))
    shard, config = folder / "model-00002-of-00003.safetensors", folder / "config.json"
    if how == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif how == "missing shard":
        shard.unlink()
    elif how == "index that names an absent file":
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace("model-00002", "model-00009"))
    elif how in ("architecture", "activation"):
        said = json.loads(config.read_text())
        said["text_config"] |= {"model_type": "gemma"} if how == "architecture" else {}
        said["vision_config"] |= {"hidden_act": "tanh"} if how == "activation" else {}
        config.write_text(json.dumps(said))
    elif how == "pickle":
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_sources(tmp_path, capsys, how):
    folder, dest = tmp_path / "hf", tmp_path / "dest"
    folder.mkdir()
    damage(folder, how)
    assert DAMAGES[how] in fails([folder, dest], capsys, dest)


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
    assert "5 problems" in line
    for said in (f"{lost} is missing", f"missing weight {norm}", "surplus weight extra", "dtype I8", "shape [5, 42]"):
        assert said in line
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"model_type": "gemma"}
    config["vision_config"] |= {"hidden_act": "tanh"}
    (folder / "config.json").write_text(json.dumps(config | {"projector_hidden_act": "gelo"}))
    line = fails([folder, dest], capsys, dest)
    for said in (
        "4 problems",
        "'gemma'",
        "hidden_act is 'tanh'",
        "projector_hidden_act is 'gelo'",
        f"{lost} is missing",
    ):
        assert said in line


def test_a_disk_that_has_no_room(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 10**6))
    line = fails([source, tmp_path / "dest"], capsys, tmp_path / "dest")
    assert re.search(r"dest needs 0\.\d\d GB, but its disk has only 0\.00 GB left", line)


def test_a_disk_that_fills_up(source, converted, tmp_path):
    """No file may grow above 8 KB: what the operating system says of a full disk, it says of this in the same way."""
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from models import convert; "
    )
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000)); sys.exit(convert.main(sys.argv[1:]))"
    for argv in ([source, tmp_path / "dest"], [converted, tmp_path / "dest", "--to-hf"]):
        done = subprocess.run([sys.executable, "-c", limited, *argv], capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 1, done.stderr
        assert "dest cannot be written: " in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


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


def stopped(source, dest, how):
    """A conversion that is sent a signal when it has written some weights: its status, and its standard error."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, source, dest], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + TIMEOUT
        while len(list(dest.parent.glob("dest.unfinished-*/weights*/*/.zarray"))) < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        _, said = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, said


def test_killed_half_way_it_runs_again(source, tmp_path):
    """The process is gone without a chance to tidy up: nothing looks complete, and the next one clears up."""
    dest = tmp_path / "dest"
    assert stopped(source, dest, signal.SIGKILL)[0] == -signal.SIGKILL
    (unfinished,) = tmp_path.glob("dest.unfinished-*")
    assert not dest.exists()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors"):
        Llava.from_pretrained(unfinished)
    assert convert.main([str(source), str(dest)]) == 0
    assert list(tmp_path.iterdir()) == [dest]
    assert_same_bits(exported(Llava.from_pretrained(dest)), published())


def test_an_interrupt_leaves_nothing(source, tmp_path):
    status, said = stopped(source, tmp_path / "dest", signal.SIGINT)
    assert status == 130, said
    assert said.splitlines()[-1].endswith("interrupted; nothing was written")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


# What is refused


def test_destinations_that_are_refused(source, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    assert "exists already" in fails([source, tmp_path / "full"], capsys)
    assert "there is no folder" in fails([source, tmp_path / "a" / "b"], capsys)
    assert list(tmp_path.iterdir()) == [tmp_path / "full"]


def test_directions_that_are_refused(source, converted, tmp_path, capsys):
    assert "is not a folder that this command converted" in fails([source, tmp_path / "x", "--to-hf"], capsys)
    assert "is a converted folder already" in fails([converted, tmp_path / "x"], capsys)
    assert "goes with neither" in fails([converted, tmp_path / "x", "--to-hf", "--dtype=float16"], capsys)
    assert "is not a folder; expected one" in fails([tmp_path / "none" / "a", tmp_path / "x"], capsys)
