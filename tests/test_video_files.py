"""`experiments.generate --video`: frames of a folder or a file, the processor that joins them, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import models
from experiments import generate
from experiments.core import cli, memory
from experiments.data import videos
from experiments.data.videos import open_video
from models.errors import CommandError
from models.processor import load_processor
from tests import qwen
from tests.commands import failure

PROMPT = "--prompt=What is on the sign?"
SIZE = (72, 60)


def picture(number, size=SIZE):
    """A field that brightens, with a square that wanders."""
    pixels = np.full((size[1], size[0], 3), 4 * number, np.uint8)
    pixels[10:22, 2 * number : 2 * number + 12] = (250, 40, 90)
    return Image.fromarray(pixels)


def fill(folder, count, **options):
    folder.mkdir()
    for number in range(count):
        picture(number, **options).save(folder / f"frame{number}.png")  # 10 behind 9
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    qwen.make(path, words=True)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("videos") / "clip", 13)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("files") / "clip.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(number))))
        container.mux(stream.encode())
    return path


def numbers(clip):
    return [np.asarray(frame)[0, -1, 0] // 4 for frame in clip.frames]


def test_frames_are_taken_evenly_and_in_the_order_of_numbers(folder):
    clip = open_video(folder, 5)
    assert numbers(clip) == [0, 2, 5, 7, 10]  # torch.arange(0, 13, 13 / 5).int(), as transformers has it
    assert (clip.total, clip.rate) == (13, None)
    assert numbers(open_video(folder, 32)) == list(range(13))


def test_a_frame_is_made_ready_as_an_image_and_joined_to_the_next(model):
    """Against transformers' patches of single images: an image is there its own next frame."""
    processor = load_processor(model)
    frames = [picture(number) for number in range(5)]
    out = processor(text=["<|video_pad|> x"], videos=[frames], rates=[4.0])
    one = processor.image_processor(frames, return_tensors="np")["pixel_values"]
    rows = one.reshape(5, -1, 3, 2, qwen.PATCH**2)
    pairs = np.stack([rows[[0, 2, 4]], rows[[1, 3, 4]]], axis=3)[..., 0, :]  # the last frame twice
    np.testing.assert_array_equal(out["pixel_values_videos"], pairs.reshape(3 * rows.shape[1], -1))
    assert out["video_grid_thw"].tolist() == [[3, 10, 12]]
    assert out["second_per_grid_ts"].tolist() == [0.5]
    assert (out["mm_token_type_ids"] == 2).sum() == 3 * 30
    with pytest.raises(ValueError, match=r"holds 0 times <\|video_pad\|> for 1 videos"):
        processor(text=["x"], videos=[frames], rates=[None])


def test_what_it_gives_is_what_the_models_take(model, folder):
    processor = load_processor(model)
    media = {"images": [picture(3)], "videos": [open_video(folder, 6).frames], "rates": [None]}
    inputs = processor(text=["is <image> in <|video_pad|> or <unk>"], **media)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(model)
    with torch.no_grad():
        want = theirs(**{name: torch.tensor(array) for name, array in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(np.asarray(models.from_pretrained(model)(**inputs)), want, rtol=0, atol=1e-4)


def test_a_file_of_its_own_says_how_frames_are_seen(model, tmp_path):
    for path in [*model.glob("*.json"), *model.glob("*.jinja")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    own = tmp_path / "video_preprocessor_config.json"
    own.write_text(json.dumps({"size": {"shortest_edge": 24**2, "longest_edge": 24**2}, "patch_size": qwen.PATCH}))
    processor = load_processor(tmp_path)
    out = processor(text=["<|video_pad|>"], videos=[[picture(0)]], rates=[None])
    assert out["video_grid_thw"].tolist() == [[1, 2, 4]]
    for text, said in (
        ('{"size": {"shortest_edge": 1, "longest_edge": 1e9}}', "video_preprocessor_config.json: size.longest_edge is"),
        ("[1]", "video_preprocessor_config.json cannot be read"),
        ('{"patch_size": "x"}', "has a processor that fails on a small image"),
        ('{"video_processor_type": "OtherVideoProcessor"}', "which no supported model has"),
    ):
        own.write_text(text)
        with pytest.raises(CommandError, match=said):
            load_processor(tmp_path)


@pytest.mark.parametrize("method", ["evs", "vidcom2", "everest", "token-dynamics", "tokencarve"])
def test_the_command_answers(model, folder, capsys, method):
    argv = [f"--model={model}", f"--video={folder}", "--frames=8", PROMPT, "--max-new-tokens=2"]
    assert generate.main([*argv, "--keep=40", f"--method={method}"]) == 0
    shown = capsys.readouterr().out
    assert "frames         8 of 13" in shown
    assert "120 -> 40" in shown


def test_a_conversation_about_a_video(model, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", ["what?\n", "where?\n"])
    assert generate.main([f"--model={model}", f"--video={folder}", "--frames=4", "--chat", "--max-new-tokens=2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


class TestBadInput:
    def said(self, argv, capsys):
        return failure(generate.main, [PROMPT, *argv], capsys)

    def test_folders(self, tmp_path, capsys):
        line = self.said([f"--video={fill(tmp_path / 'one', 1)}"], capsys)
        assert "one has 1 frame; ask about a single image by --image" in line
        (tmp_path / "none").mkdir()
        assert "none holds no images; expected the frames" in self.said([f"--video={tmp_path}/none"], capsys)
        mixed = fill(tmp_path / "mixed", 3)
        picture(3, size=(40, 40)).save(mixed / "frame3.png")
        assert "frames of 72 x 60 and of 40 x 40 pixels" in self.said([f"--video={mixed}"], capsys)
        (mixed / "frame3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        assert "frame3.png cannot be read" in self.said([f"--video={mixed}"], capsys)

    def test_more_than_memory_holds(self, folder, monkeypatch, capsys):
        monkeypatch.setattr(memory, "available", lambda: 100_000)
        assert "13 frames of 72 x 60 pixels take 165 KiB, and 97.7 KiB" in self.said([f"--video={folder}"], capsys)

    @pytest.mark.parametrize("frames", ["10000", "1", "0", "x"])
    def test_numbers_of_frames(self, folder, frames, capsys):
        line = self.said([f"--video={folder}", f"--frames={frames}"], capsys)
        assert f"--frames: '{frames}' is not a number of frames from 2 to 768" in line

    def test_a_family_without_video(self, folder, capsys):
        line = self.said([f"--model={cli.SHIPPED}", f"--video={folder}"], capsys)
        assert "llava models take no video; qwen2_5_vl models do" in line

    def test_files(self, tmp_path, monkeypatch, capsys):
        assert "no such file" in self.said([f"--video={tmp_path}/clip.mp4"], capsys)
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"no video")
        monkeypatch.setitem(sys.modules, "av", None)
        assert "needs PyAV, which is not installed (pip install 'av>=14')" in self.said([f"--video={path}"], capsys)

    def test_less_than_a_method_leaves(self, model, folder, capsys):
        line = self.said([f"--model={model}", f"--video={folder}", "--frames=4", "--keep=9", "--method=evs"], capsys)
        assert "evs keeps the first frame whole: of 2 frames of 30 tokens it leaves 30 or more, got keep=9" in line

    def test_images_or_a_video(self, folder, capsys):
        assert "not allowed with" in self.said([f"--video={folder}", "--image=x.png"], capsys)


@pytest.mark.video
class TestFiles:
    """Clips that PyAV makes."""

    def test_frames_and_rate(self, clip):
        found = open_video(clip, 6)
        assert (found.total, found.rate) == (30, 2.0)
        for number, frame in zip(range(0, 30, 5), found.frames, strict=True):
            assert np.abs(np.asarray(frame, int) - np.asarray(picture(number), int)).mean() < 6
        assert len(open_video(clip, 768).frames) == 30

    def test_the_command_answers(self, model, clip, capsys):
        argv = [f"--model={model}", f"--video={clip}", "--frames=8", PROMPT, "--max-new-tokens=2", "--keep=0.3"]
        assert generate.main(argv) == 0
        assert "frames         8 of 30" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda whole: b"", "cannot be read as a video"),
            (lambda whole: whole[:3000], "holds no video that can be read"),
            (lambda whole: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot be read as a video"),
        ],
    )
    def test_damage(self, clip, tmp_path, damage, said, capsys):
        path = tmp_path / "clip.mp4"
        path.write_bytes(damage(clip.read_bytes()))
        assert said in failure(generate.main, [PROMPT, f"--video={path}"], capsys)

    def test_no_video_in_it_or_a_single_frame(self, tmp_path):
        import av

        for name, kind, said in (
            ("sound.wav", "pcm_s16le", "holds no video"),
            ("one.mp4", "mpeg4", "has 1 frame; ask"),
        ):
            path = tmp_path / name
            with av.open(path, "w") as container:
                stream = container.add_stream(kind, rate=8000 if kind == "pcm_s16le" else 10)
                if kind == "mpeg4":
                    stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
                    container.mux(stream.encode(av.VideoFrame.from_image(picture(0))))
                else:
                    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
                    frame.sample_rate = 8000
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            with pytest.raises(CommandError, match=said):
                open_video(path, 4)

    def test_a_file_that_is_cut_off(self, clip, monkeypatch):
        monkeypatch.setattr(videos, "_places", lambda path, total, count: [0, 40])
        with pytest.raises(CommandError, match="ends before frame 40"):
            open_video(clip, 2)
