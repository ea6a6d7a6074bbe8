"""From names to folders; what the hub would answer is put in its place."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from models.io import hub

NAME = "some/model"


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A folder that the hub gives, and what it was asked for."""
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path, asked


def test_folders_are_taken_as_they_are(tmp_path, snapshot):
    assert hub.find_checkpoint(tmp_path) == tmp_path
    assert snapshot[1] == []


def test_model_ids_are_downloaded(snapshot):
    folder, asked = snapshot
    (folder / "model-00001-of-00003.safetensors").touch()
    assert hub.find_checkpoint(NAME, revision="v2") == folder
    ((name, options),) = asked
    assert (name, options["revision"]) == (NAME, "v2")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in options["allow_patterns"])


def test_small_files_alone_are_enough_for_a_plan(snapshot):
    folder, asked = snapshot
    assert hub.find_checkpoint(NAME, weights=False) == folder
    assert asked[0][1]["allow_patterns"] == list(hub.SMALL_FILES)


def test_models_of_pickles_alone_are_refused(snapshot):
    (snapshot[0] / "pytorch_model.bin.index.json").touch()
    with pytest.raises(FileNotFoundError, match=r"no safetensors.*pickles \(\.bin\) are refused, because they can run"):
        hub.find_checkpoint(NAME)


def test_what_the_hub_says_is_passed_on(monkeypatch):
    def fails(*_, **__):
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(FileNotFoundError, match=r"some/model is not a local .* from the hub: no connection"):
        hub.find_checkpoint(NAME)


@pytest.mark.parametrize("name", ["model", "./model", "/some/model", "~/model", "a/b/c", "some/"])
def test_names_that_are_neither(name, snapshot):
    with pytest.raises(FileNotFoundError, match="is not a folder; expected one, or a model id"):
        hub.find_checkpoint(name)
    assert snapshot[1] == []
