"""Border tokens: last for every cut but real in every layer, or never in the decoder at all."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from experiments.core import loading
from models.engine.plan import Cut
from models.llava import Llava
from tests import checkpoints, tiny
from tests.tiny import IMAGE_TOKEN, PATCHES
from tokencarve_jax import COMPRESSORS, Compressor, Selection

BORDER = np.zeros((5, 5), bool)
BORDER[:2] = BORDER[4] = True  # 10 tokens show the picture
BORDER = BORDER.reshape(-1)
METHODS = ("tokencarve", "random", "divprune", "visionzip")


@pytest.fixture(scope="module")
def llava():
    return tiny.make_llava(num_layers=3)


@pytest.fixture(scope="module")
def inputs():
    ids, pixels, mask = tiny.make_inputs(texts=(9, 4), images=(1, 1))
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask}


def borders(*rows):
    return np.stack([BORDER if row else np.zeros(PATCHES, bool) for row in rows])


def schedule(name, keep):
    compressor = COMPRESSORS[name]
    return ((2 if compressor.at == "decoder" else compressor.at, compressor, keep),)


class TestLast:
    @pytest.mark.parametrize("name", METHODS)
    def test_pictures_go_first(self, llava, inputs, name):
        prompt = llava.prompt(**inputs, border=borders(True, False))
        few, many = (np.asarray(llava.prefill(prompt, carve=schedule(name, k)).cuts[0].indices) for k in (8, 14))
        assert not BORDER[few[0]].any()
        assert (~BORDER[many[0]]).sum() == 10
        free = np.asarray(
            llava.prefill(llava.prompt(**inputs), carve=schedule(name, 8)).cuts[0].indices
        )  # the row without border is carved as ever
        np.testing.assert_array_equal(few[1], free[1])

    def test_they_are_real_tokens(self, llava, inputs):
        """Nothing but the choice of a cut changes, and those that it leaves are attended to."""
        plain, marked = llava.prompt(**inputs), llava.prompt(**inputs, border=borders(True, True))
        np.testing.assert_array_equal(llava.prefill(plain).logits, llava.prefill(marked).logits)
        out = llava.prefill(marked, carve=schedule("tokencarve", 14))
        text = plain.lengths - PATCHES
        assert out.cache.segments[0].valid.sum(1).tolist() == (text + 14).tolist()
        kept = np.asarray(out.cuts[0].indices)
        assert (BORDER[kept].sum(1) == 4).all()
        assignment = np.asarray(out.cuts[0].assignment)
        gone = BORDER & ~np.isin(np.arange(PATCHES), kept[0])
        assert (assignment[0][gone] == -1).all()  # dropped, and not merged into the picture

    def test_what_is_left_is_attended_to(self, llava, inputs):
        """As after a cut that leaves the same tokens, and knows nothing of border."""
        marked = llava.prompt(**inputs, border=borders(True, True))
        out = llava.prefill(marked, carve=schedule("fastv", 14))
        kept = out.cuts[0].indices
        same = Compressor("same", lambda tokens, *, keep: Selection(kept))
        want = llava.prefill(llava.prompt(**inputs), carve=((2, same, 14),))
        assert BORDER[np.asarray(kept)].sum(1).tolist() == [4, 4]
        np.testing.assert_allclose(out.logits, want.logits, atol=1e-5)

    def test_through_several_cuts(self, llava, inputs):
        prompt = llava.prompt(**inputs, border=borders(True, True))
        out = llava.prefill(prompt, carve=((1, "random", 14), (2, "random", 9)))
        first, second = (np.asarray(cut.indices) for cut in out.cuts)
        for row in range(2):
            assert not BORDER[first[row][second[row]]].any()

    def test_beside_a_richer_row(self, llava):
        """A row with fewer images has no tokens at all in places: its border goes before these."""
        ids, pixels, mask = tiny.make_inputs(texts=(9, 9), images=(1, 2))
        carve = (Cut(2, COMPRESSORS["tokencarve"], 14),)
        more = {"max_new_tokens": 4, "carve": carve}
        got = llava.generate(ids, pixels, attention_mask=mask, border=borders(True, True, False), **more)
        alone = llava.generate(ids[:1], pixels[:1], attention_mask=mask[:1], border=borders(True), **more)
        np.testing.assert_array_equal(got[0], alone[0])

    def test_budgets_per_image(self, llava):
        ids, pixels, mask = tiny.make_inputs(texts=(9,), images=(2,))
        prompt = llava.prompt(ids, pixels, mask, border=borders(False, True))
        cut = Cut(2, COMPRESSORS["tokencarve"], 9, scope="image")
        kept = np.asarray(llava.prefill(prompt, carve=(cut,)).cuts[0].indices[0])
        assert (kept < PATCHES).sum() == 9
        assert not BORDER[kept[9:] - PATCHES].any()

    def test_what_cannot_be(self, llava, inputs):
        with pytest.raises(ValueError, match=r"border has shape \(2, 24\); expected \(2, 25\)"):
            llava.prompt(**inputs, border=np.zeros((2, 24), bool))
        with pytest.raises(ValueError, match="needs whole images without border tokens"):
            llava.prefill(llava.prompt(**inputs, border=borders(True, True)), carve=(("tower", "tome", 20),))


class TestDrop:
    def test_logits_of_a_prompt_that_never_had_them(self, tmp_path):
        """Against transformers, given the embeddings of the shorter prompt."""
        theirs = checkpoints.make_llava(tmp_path / "model")
        ours = Llava.from_pretrained(tmp_path / "model")
        rng = np.random.default_rng(5)
        pixels = rng.normal(size=(2, 3, 30, 30)).astype(np.float32)
        words = rng.integers(1, 96, (2, 11))
        rows = [[*words[i][:4], *[checkpoints.IMAGE] * PATCHES, *words[i][4:]] for i in range(2)]
        ids = np.array([[0, 0, *rows[0]], [*rows[1], 0, 0]])
        mask = np.array([[0, 0, *[1] * len(rows[0])], [*[1] * len(rows[1]), 0, 0]])
        enters, left_out = mask.copy(), borders(True, False)
        left_out[1, 7] = True
        enters[ids == checkpoints.IMAGE] = ~left_out.reshape(-1)
        got = np.asarray(ours(ids, pixels, attention_mask=enters))
        for row in range(2):
            with torch.no_grad():
                features = theirs.get_image_features(torch.tensor(pixels[row : row + 1]), return_dict=True)
                visual = features.pooler_output[0][torch.tensor(~left_out[row])]
                short = torch.tensor(ids[row][enters[row] == 1])[None]
                embeds = theirs.get_input_embeddings()(short)
                embeds[short == checkpoints.IMAGE] = visual
                want = theirs.lm_head(theirs.model.language_model(inputs_embeds=embeds).last_hidden_state)[0].numpy()
            np.testing.assert_allclose(got[row][enters[row] == 1], want, atol=1e-4)
            assert (got[row][enters[row] == 0] == 0).all()

    def test_shorter_and_carved(self, llava, inputs):
        enters = inputs["attention_mask"].copy()
        enters[inputs["input_ids"] == IMAGE_TOKEN] = ~borders(True, True).reshape(-1)
        whole, short = llava.prompt(**inputs), llava.prompt(**inputs | {"attention_mask": enters})
        assert (whole.lengths - short.lengths).tolist() == [15, 15]
        out = llava.prefill(short, carve=schedule("tokencarve", 6))
        assert out.cuts[0].indices.shape == (2, 6)
        assert (np.asarray(out.cuts[0].indices) < 10).all()
        assert out.cache.segments[0].valid.sum(1).tolist() == (short.lengths - 4).tolist()
        with pytest.raises(ValueError, match="needs whole images without border tokens"):
            llava.prefill(short, carve=(("tower", "tome", 20),))


def test_a_photograph_on_the_shipped_model():
    """640 x 480: 144 of 576 tokens are border."""
    checkpoint = loading.load("experiments/tiny", dtype="float32", image_aspect_ratio="pad")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    text = "USER: <image>\nwhere is the red circle? ASSISTANT:"
    prompts = {}
    for how in ("keep", "last", "drop"):
        given = checkpoint.encode_texts([[image]], [text], border=how)
        prompts[how] = checkpoint.llava.prompt(
            given.input_ids, given.pixel_values, given.attention_mask, border=given.border
        )
    border = np.asarray(prompts["last"].border[0])
    assert border.sum() == 144
    assert int(prompts["keep"].lengths[0]) - int(prompts["drop"].lengths[0]) == 144
    assert int(prompts["keep"].lengths[0]) == int(prompts["last"].lengths[0])
    for keep, of_border in ((128, 0), (500, 68)):
        kept = np.asarray(jax.device_get(checkpoint.llava.prefill(prompts["last"], carve=keep).cuts[0].indices[0]))
        assert border[kept].sum() == of_border
