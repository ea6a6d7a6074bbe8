"""Where the visual tokens of every family lie, and pictures of what a carve leaves of them."""

import numpy as np
import pytest
from PIL import Image

import models
from experiments import generate
from experiments.core.loading import load
from experiments.reports import pictures
from tests import families, qwen
from tests.test_llava_onevision import BATCHES, HF
from tests.test_video_files import fill

NEXT, ONEVISION = "llava-v1.6-vicuna-7b", "llava-onevision-qwen2-7b"
PROMPT = ["--prompt=What is on the sign?", "--max-new-tokens=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each family, by its model_type."""
    path = tmp_path_factory.mktemp("families")
    families.make(NEXT, path / "llava_next", words=True)
    families.make(ONEVISION, path / "llava_onevision", words=True)
    for family in qwen.FAMILIES:
        qwen.make(path / family, family, words=True)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "tall.png"
    families.photographs()[1].save(path)  # 120 x 400
    return path


def asked(model, inputs, **placeholders):
    """A batch with the model's own placeholders, as these checkpoints have the shipped one's words."""
    ids = inputs["input_ids"].copy()
    for kind, token in placeholders.items():
        ids[inputs["input_ids"] == token] = getattr(model.config, f"{kind}_token_id")
    return inputs | {"input_ids": ids}


def means(pixels, shape):
    """Of parts that divide an image [C, height, width] evenly into rows and columns, by Pillow: [parts, C]."""
    found = [Image.fromarray(one).resize(shape[::-1], Image.Resampling.BOX) for one in pixels.astype(np.float32)]
    return np.stack([np.asarray(one).reshape(-1) for one in found], axis=-1)


def parts(views, tokens):
    """By visual token the mean of what the views show there; NaN where a token is in no view."""
    found = np.full((tokens, 3), np.nan)
    for view in views:
        assert np.isnan(found[view.tokens]).all()  # each lies in one place alone
        found[view.tokens.reshape(-1)] = means(view.pixels, view.tokens.shape)
    return found


def of_tiles(stack):
    """The same of all patches of tiles, as the tower sees them, and a newline."""
    side = stack.shape[-1] // families.PATCH
    seen = side * families.PATCH
    return np.concatenate([*(means(tile[:, :seen, :seen], (side, side)) for tile in stack), np.full((1, 3), np.nan)])


def test_tiles(folders):
    """A token shows the patches that it is computed from, which the parity with transformers holds."""
    model, hf = models.from_pretrained(folders / "llava_next"), families.narrow(NEXT)
    inputs = asked(model, families.batch(hf, (3,), (8,)), image=hf.image_token_id)
    prompt, views = model.prompt(**inputs), model.views(**inputs)
    features = prompt.feature_index[0][prompt.visual_valid[0]]
    np.testing.assert_allclose(parts(views, len(features)), of_tiles(prompt.pixel_values)[features], atol=1e-5)
    side = families.SIDE // families.PATCH
    assert [view.tokens.shape == (side, side) for view in views] == [True, False] * 3
    assert all(view.pixels.shape[1:] == tuple(families.PATCH * n for n in view.tokens.shape) for view in views)


@pytest.mark.parametrize("name", ["little", "one image", "video"])
def test_tokens_of_mixed_patches(folders, name):
    """As above; of a grid that was made smaller, and of frames, a token is a weighted mean of up to four patches."""
    model = models.from_pretrained(folders / "llava_onevision")
    inputs = asked(model, BATCHES[name], image=HF.image_token_id)
    prompt, views = model.prompt(**inputs), model.views(**inputs)
    tiles, index = prompt.pixel_values, prompt.feature_index[prompt.visual_valid]
    shown = of_tiles(tiles.pixels)[tiles.features[index]]
    want, got = np.einsum("nk,nkc->nc", tiles.weights[index], shown), parts(views, len(index))
    lie = ~np.isnan(want[:, 0])
    np.testing.assert_array_equal(lie, ~np.isnan(got[:, 0]))
    if name == "little":
        np.testing.assert_allclose(got[lie], want[lie], atol=1e-5)
    else:  # a mean that leans to the middle of a place is like the plain one there
        alike = np.corrcoef(got[lie].reshape(-1), want[lie].reshape(-1))[0, 1]
        assert alike > 0.97


@pytest.mark.parametrize("family", qwen.FAMILIES)
def test_grids_and_frames(folders, family):
    """An image is what the processor was given; rows, columns and frames are those of transformers' positions."""
    checkpoint = load(str(folders / family), dtype="float32")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 48, 3), np.uint8))
    inputs = checkpoint.encode([[photo]], ["what?"])
    (view,) = checkpoint.llava.views(**inputs.named)
    np.testing.assert_array_equal(checkpoint.seen(view.pixels), np.asarray(photo))
    np.testing.assert_array_equal(view.tokens, np.arange(24).reshape(6, 4))

    pieces = [4, (3, 10, 8), 5, (1, 6, 4), 3]
    given = asked(checkpoint.llava, qwen.batch(pieces, family=family), image=qwen.IMAGE, video=qwen.VIDEO)
    prompt, views = checkpoint.llava.prompt(**given), checkpoint.llava.views(**given)
    assert [view.tokens.shape for view in views] == [(5, 4)] * 3 + [(3, 2)]
    for view in views:
        places = prompt.positions[0][prompt.visual_slots[0][view.tokens]]
        np.testing.assert_array_equal(
            places[..., 1:] - places[0, 0, 1:], np.moveaxis(np.indices(view.tokens.shape), 0, -1)
        )
        assert (places[..., 0] == places[0, 0, 0]).all()


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", *qwen.FAMILIES])
def test_the_command_draws(folders, image, family, tmp_path, capsys, monkeypatch):
    """What stands in a picture is what the cut left, but for newlines."""
    drawn, draw, picture = [], pictures.draw, tmp_path / "kept.png"
    monkeypatch.setattr(pictures, "draw", lambda views: drawn.append(views) or draw(views))
    argv = [f"--model={folders / family}", f"--image={image}", *PROMPT, "--keep=12", "--method=uniform"]
    assert generate.main([*argv, f"--picture={picture}"]) == 0
    assert np.asarray(Image.open(picture)).std() > 20
    views = drawn[0]
    assert len(views) == 1 + (family not in qwen.FAMILIES)
    before, after = map(int, capsys.readouterr().out.split("visual tokens")[1].split("\n")[0].split("->"))
    newlines = before - sum(view.assignment.size for view in views)
    assert newlines == (0 if family in qwen.FAMILIES else views[-1].assignment.shape[0])
    standing = sum(view.stays.sum() for view in views)
    assert after - newlines <= standing <= after == 12
    assert standing == len(np.unique(np.concatenate([view.assignment[view.stays] for view in views])))


def test_the_command_draws_frames(folders, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(pictures, "draw", lambda views: drawn.append(views) or Image.new("RGB", (8, 8)))
    clip = fill(tmp_path / "clip", 7)
    argv = [f"--model={folders / 'qwen2_5_vl'}", f"--video={clip}", *PROMPT, "--keep=30", "--method=vidcom2"]
    assert generate.main([*argv, f"--picture={tmp_path}/kept.png"]) == 0
    (views,) = drawn
    assert [view.assignment.shape for view in views] == [(5, 6)] * 4
    assert sum(view.stays.sum() for view in views) == 30
