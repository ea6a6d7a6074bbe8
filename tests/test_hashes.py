"""Files that changed after they were written: only recorded hashes tell."""

import hashlib
import subprocess

import pytest

import models
from models import convert
from models.errors import CheckpointError
from models.io import hashes
from tests.commands import save_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def converted(source, tmp_path):
    convert.convert(source, tmp_path / "orbax")
    return tmp_path / "orbax"


def flip(path):
    """The last data byte's lowest bit: still a finite number."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_flipped_byte_of_a_converted_folder(converted, capsys):
    assert convert.main([str(converted), "--verify"]) == 0
    assert "files are what was recorded" in capsys.readouterr().out
    subprocess.run(["sha256sum", "--quiet", "--check", hashes.SUMS], cwd=converted, check=True)
    flip(largest(converted))
    models.from_pretrained(converted)  # loads without a word
    with pytest.raises(CheckpointError, match=r"weights/.* is not what was recorded"):
        models.from_pretrained(converted, verify=True)
    assert convert.main([str(converted), "--verify"]) == 1
    assert capsys.readouterr().err.count("is not what was recorded") == 1


def test_the_way_back_is_recorded_too(converted, tmp_path):
    convert.to_hf(converted, tmp_path / "hf")
    models.from_pretrained(tmp_path / "hf", verify=True)
    flip(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was recorded"):
        models.from_pretrained(tmp_path / "hf", verify=True)


def test_missing_and_surplus_files(converted):
    (converted / "config.json").unlink()
    (converted / "weights" / "more").write_text("x")
    with pytest.raises(CheckpointError, match=r"weights/more is not in SHA256SUMS; config\.json does not exist"):
        hashes.verify(converted)


def test_a_snapshot_of_the_hub(source, tmp_path):
    """Links to blobs: the SHA-256 of what is in Git LFS, Git's own name of what is not."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            name = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            name = subprocess.run(
                ["git", "hash-object", path], check=True, capture_output=True, text=True
            ).stdout.strip()
        (blobs / name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blobs / name)
    assert hashes.verify(snapshot) == len(list(source.iterdir()))
    for name in ("model.safetensors", "tokenizer.json"):
        flip((snapshot / name).resolve())
    with pytest.raises(CheckpointError, match=r"2 problems: model\.safetensors is not .*; tokenizer\.json is not "):
        models.from_pretrained(snapshot, verify=True)


@pytest.mark.parametrize("text", ["", "x", f"{'0' * 64}  ../config.json\n", f"{'0' * 64}  /etc/hostname\n", "\xff"])
def test_sums_that_are_none(source, tmp_path, text):
    (tmp_path / hashes.SUMS).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="SHA256SUMS"):
        hashes.verify(tmp_path)


def test_nothing_was_recorded(source):
    with pytest.raises(CheckpointError, match="has no recorded hashes to verify"):
        models.from_pretrained(source, verify=True)
