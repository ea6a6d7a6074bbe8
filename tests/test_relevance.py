"""The evidence `relevance`: CLIP's text tower, and what the engine makes of it, against transformers in torch."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from models.engine import evidence, plan, prefill
from models.engine.embed import embed
from models.engine.plan import Cut
from models.engine.relevance import FEATURES, QuestionEmbeddings
from models.engine.visual import TowerRequest
from models.errors import CheckpointError, ConfigError
from models.llava import Llava
from models.nn.clip_config import ClipConfig
from models.nn.clip_text import PatchEmbedding
from models.relevance import Relevance, cut
from tests import tiny
from tests.checkpoints import IMAGE, PATCHES, VISION
from tests.clips import CONTEXT, END, LEGACY, make_clip, make_llava, relevance
from tests.devices import on_devices
from tests.test_per_image import NEXT, next_inputs
from tokencarve_jax import COMPRESSORS, Compressor, Selection, Tokens

LAYERS = 3  # of the decoder
CDPRUNER = COMPRESSORS["cdpruner"]
# One short; one of three pieces, the last of them short.
QUESTIONS = ["is it red?", "where is the circle and what?"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def clip(clip_folder):
    """As published: `eos_token_id` is 2 there."""
    return make_clip(clip_folder, eos_token_id=LEGACY)


@pytest.fixture(scope="module")
def asks(clip_folder, clip):
    return Relevance.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("llava")
    make_llava(folder, clip, text={"num_hidden_layers": LAYERS})
    return folder


@pytest.fixture(scope="module")
def llava(llava_folder):
    return Llava.from_pretrained(llava_folder)


def inputs(images=(2, 1), words=(9, 4)):
    """Left-padded rows with so many images and words."""
    rng = np.random.default_rng(5)
    rows = [[5, *[IMAGE] * PATCHES * own, *rng.integers(3, 90, n)] for own, n in zip(images, words, strict=True)]
    size = max(map(len, rows))
    ids, mask = np.zeros((len(rows), size), int), np.zeros((len(rows), size), int)
    for row, own in enumerate(rows):
        ids[row, size - len(own) :], mask[row, size - len(own) :] = own, 1
    side = VISION["image_size"]
    return ids, rng.standard_normal((sum(images), 3, side, side)).astype(np.float32), mask


def pieces_of(tokenizer, question):
    """The official code's, in torch: zeros up to a multiple of the context, then one row per piece."""
    told = tokenizer(text=question, return_tensors="pt")
    count = (told["input_ids"].shape[1] - 1) // CONTEXT + 1
    room = torch.zeros(1, CONTEXT * count - told["input_ids"].shape[1], dtype=torch.long)
    return tuple(torch.cat([told[name], room], 1).reshape(-1, CONTEXT) for name in ("input_ids", "attention_mask"))


def expected(clip, asks, pixels, question, **how):
    """[I, N] of images to one question."""
    return relevance(clip, torch.tensor(pixels), *pieces_of(asks.tokenizer, question), **how).numpy()


def known(model, prompt, cuts, kind="relevance"):
    """Relevance [B, N] as a compressor before decoder layer 0 gets it, and which of it counts."""
    made = plan.resolve(plan.parse(cuts, num_layers=LAYERS), prompt.visual_slots.shape[1], images=prompt.images)

    @jax.jit
    def relevance_of(model, prompt):
        _, sequence, _ = embed(model, prompt, plan=made)
        return evidence.of_text(sequence)[kind]()

    return np.asarray(relevance_of(model, prompt)), np.asarray(prompt.visual_valid)


class TestTextTower:
    @pytest.mark.parametrize("ends", [END, LEGACY, 30])
    def test_embeddings_are_those_of_transformers(self, tmp_path, ends):
        """Ids at random, so that the end of text stands in the middle, several times or nowhere; holes in the mask."""
        make_clip(tmp_path, seed=7, eos_token_id=ends)
        theirs, ours = CLIPTextModelWithProjection.from_pretrained(tmp_path).eval(), Relevance.from_pretrained(tmp_path)
        rng = np.random.default_rng(1)
        ids, lengths = rng.integers(0, END + 1, (6, CONTEXT)), [3, CONTEXT, 7, 5, 9, 2]
        ids[1, [4, 8]] = ends
        ids[2, 5] = ends
        mask = (np.arange(CONTEXT) < np.array(lengths)[:, None]) & (rng.random(ids.shape) < 0.8)
        mask[:, 0] = True
        with torch.no_grad():
            want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).text_embeds.numpy()
        np.testing.assert_allclose(ours.clip.embed_texts(ids, mask), want, rtol=0, atol=2e-5)
        assert np.abs(want).std() > 0.1

    def test_questions_go_through_the_tokenizer_as_with_transformers(self, clip, asks):
        got = asks(QUESTIONS)
        assert np.asarray(got.valid).tolist() == [[True, False, False], [True, True, True]]
        for row, question in enumerate(QUESTIONS):
            ids, mask = pieces_of(asks.tokenizer, question)
            with torch.no_grad():
                want = clip.get_text_features(ids, attention_mask=mask).pooler_output.numpy()
            np.testing.assert_allclose(got.texts[row, : len(want)], want, rtol=0, atol=2e-5)

    def test_what_benchmarks_ask_for_is_left_out_as_in_the_official_code(self, asks):
        brief = [question + "\nAnswer the question using a single word or phrase." for question in QUESTIONS]
        np.testing.assert_array_equal(asks(brief).texts, asks(QUESTIONS).texts)
        other = [question + " Answer the question using a single word or phrase." for question in QUESTIONS]
        assert np.abs(np.asarray(asks(other).texts[:, 0]) - asks(QUESTIONS).texts[:, 0]).max() > 0.01

    @pytest.mark.parametrize("length", [1, CONTEXT, CONTEXT + 1, 2 * CONTEXT])
    def test_pieces(self, length):
        ids, mask = cut([list(range(1, length + 1)), [9]], CONTEXT)
        assert ids.shape == (2, -(-length // CONTEXT), CONTEXT)
        assert ids[0][mask[0]].tolist() == list(range(1, length + 1))
        assert not ids[~mask].any()
        assert ids[1][mask[1]].tolist() == [9]

    def test_dtype(self, clip_folder, asks):
        low = Relevance.from_pretrained(clip_folder, dtype=jnp.bfloat16)(QUESTIONS)
        assert low.texts.dtype == jnp.bfloat16
        np.testing.assert_allclose(low.texts.astype(np.float32), asks(QUESTIONS).texts, rtol=0, atol=0.3)


class TestRelevance:
    @pytest.mark.parametrize("name", ["cdpruner", "trim"])
    def test_is_that_of_the_official_formula(self, llava, clip, asks, name):
        """Ragged rows, two images in one of them, and a question in pieces in the other; real features both times."""
        ids, pixels, mask = inputs()
        prompt = llava.prompt(ids, pixels, mask, relevance=asks(QUESTIONS))
        (kind,), how = COMPRESSORS[name].evidence, {"cosine": name == "cdpruner"}
        got, valid = known(llava, prompt, (("input", name, 9),), kind)
        want = [expected(clip, asks, pixels[:2], QUESTIONS[0], **how)]
        want.append(expected(clip, asks, pixels[2:], QUESTIONS[1], **how))
        for row in range(2):
            np.testing.assert_allclose(got[row][valid[row]], want[row].reshape(-1), rtol=1e-5, atol=1e-5)
            assert want[row].std() > 0.05
        assert valid.sum(1).tolist() == [2 * PATCHES, PATCHES]

    @pytest.mark.parametrize("scope", ["joint", "image"])
    def test_cdpruner_goes_by_it(self, llava, clip, asks, scope):
        ids, pixels, mask = inputs(images=(2, 2))
        schedule = (Cut("input", CDPRUNER, 6, scope=scope),)
        prompt = llava.prompt(ids, pixels, mask, per_image=scope == "image", relevance=asks(QUESTIONS))
        got = llava.prefill(prompt, carve=schedule).cuts[0].indices
        values = np.asarray(llava.image_features(pixels))
        for row, question in enumerate(QUESTIONS):
            own, told = values[2 * row : 2 * row + 2], expected(clip, asks, pixels[2 * row : 2 * row + 2], question)
            if scope == "joint":
                own, told = own.reshape(-1, own.shape[-1]), told.reshape(-1)
            want = np.asarray(CDPRUNER(Tokens.of(own), keep=6, relevance=told).indices)
            want = want if scope == "joint" else np.concatenate([want[0], want[1] + PATCHES])
            assert got[row].tolist() == want.tolist()

    def test_it_follows_the_survivors_of_earlier_cuts(self, llava, clip, asks):
        """Behind a cut in the tower, one on the input, and in a decoder layer."""
        ids, pixels, mask = inputs(images=(1, 1))
        told = np.stack([expected(clip, asks, pixels[row : row + 1], QUESTIONS[row])[0] for row in range(2)])
        for place, first in (("tower", "uniform"), ("input", "divprune")):
            schedule = ((place, first, 15), (2, most_relevant(), 4))
            out = llava.prefill(llava.prompt(ids, pixels, mask, relevance=asks(QUESTIONS)), carve=schedule)
            for row in range(2):
                left = np.asarray(out.cuts[0].indices[row])
                best = np.sort(np.argsort(-told[row][left])[:4])
                assert out.cuts[1].indices[row].tolist() == best.tolist()

    def test_generate_takes_it(self, llava, asks):
        ids, pixels, mask = inputs(images=(1, 1))
        options = {"attention_mask": mask, "max_new_tokens": 2, "carve": (("input", "cdpruner", 3),)}
        told = llava.generate(ids, pixels, relevance=asks(QUESTIONS), **options)
        assert (told != llava.generate(ids, pixels, **options)).any()

    def test_rows_have_theirs_whatever_stands_beside_them(self, llava, asks):
        """The shorter question's missing pieces count for nothing."""
        ids, pixels, mask = inputs(images=(1, 1))
        both = llava.prompt(ids, pixels, mask, relevance=asks(QUESTIONS))
        alone = llava.prompt(ids[:1], pixels[:1], mask[:1], relevance=asks(QUESTIONS[:1]))
        cuts = (("input", "cdpruner", 9),)
        one, other = (known(llava, prompt, cuts)[0] for prompt in (both, alone))
        np.testing.assert_allclose(one[:1], other, rtol=0, atol=1e-6)


def most_relevant():
    def select(tokens, *, keep, relevance):
        order = jnp.argsort(-relevance, axis=-1, stable=True)
        return Selection(jnp.sort(order[..., :keep], axis=-1).astype(jnp.int32))

    return Compressor("most-relevant", select, at="input")


class TestOnlyWhatIsDeclared:
    @pytest.fixture
    def counted(self, monkeypatch):
        """How often it is computed, and what is read in the tower; per program that is traced."""
        calls, read, real, visual = [], [], QuestionEmbeddings._mean, Llava.visual

        def mean(self, *args):
            calls.append(1)
            return real(self, *args)

        def reading(self, pixels, reading, key=None):
            read.append(reading.evidence)
            return visual(self, pixels, reading, key)

        monkeypatch.setattr(QuestionEmbeddings, "_mean", mean)
        monkeypatch.setattr(Llava, "visual", reading)
        jax.clear_caches()
        return calls, read

    @pytest.mark.parametrize(
        ("carve", "asked", "times"),
        [
            (0.2, True, 0),
            ((("tower", "cdpruner", 5),), True, 0),
            ((("input", "trim", 5),), True, 1),
            ((("input", "cdpruner", 5),), False, 0),
            ((("input", "cdpruner", 5),), True, 1),
            ((("input", "cdpruner", 9), (2, "cdpruner", 5)), True, 2),
        ],
    )
    def test_it_is_computed_where_a_cut_asks_and_the_prompt_knows(self, llava, asks, counted, carve, asked, times):
        calls, read = counted
        ids, pixels, mask = inputs(images=(1, 1))
        prompt = llava.prompt(ids, pixels, mask, relevance=asks(QUESTIONS) if asked else None)
        llava.prefill(prompt, carve=carve)
        assert len(calls) == times
        assert [FEATURES in found for found in read] == [times > 0]

    def test_scoring_cuts_nothing(self, llava, asks, counted):
        llava(*inputs(images=(1, 1)), relevance=asks(QUESTIONS))
        assert counted == ([], [()])

    def test_plans_that_do_not_ask_share_the_program(self, llava, asks):
        ids, pixels, mask = inputs(images=(1, 1))
        llava.prefill(llava.prompt(ids, pixels, mask), carve=7)
        before = prefill.prefill._cache_size()
        llava.prefill(llava.prompt(ids, pixels, mask, relevance=asks(QUESTIONS)), carve=7)
        assert prefill.prefill._cache_size() == before


def test_newlines_of_llava_next_are_the_least_relevant():
    """They are of no patch, and must not move the range of those that are; nor must the padding of poorer rows."""
    model, rng = tiny.make_llava(config=NEXT), np.random.default_rng(0)
    config = ClipConfig(text=None, vision=NEXT.vision, projection_dim=14)
    patches = PatchEmbedding(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    patches.post_layernorm.bias[...] = jnp.asarray(rng.normal(size=24), jnp.float32)
    texts = rng.normal(size=(2, 1, 14)).astype(np.float32)
    told, _ = next_inputs([[(10, 20)], [(50, 50)]])
    # What padding shows, the first patch of all, would be the second row's least relevant one.
    first = model.visual(model.prompt(**told).pixel_values, TowerRequest((FEATURES,))).evidence[FEATURES][0]
    texts[1, 0] = patches(first)

    def relevance_of(rows, images):
        asked = QuestionEmbeddings(texts[rows], np.ones((len(texts[rows]), 1), bool), patches)
        own = {name: array[rows] for name, array in told.items() if name in ("input_ids", "attention_mask")}
        own |= {name: told[name][images] for name in ("pixel_values", "image_sizes")}
        prompt = model.prompt(**own, relevance=asked)
        return *known(model, prompt, (("input", "cdpruner", 9),)), prompt

    both, valid, prompt = relevance_of(slice(None), slice(None))
    newline = prompt.feature_index == prompt.feature_index.max()
    for row in range(2):
        of_patch, own = both[row][valid[row] & ~newline[row]], both[row][valid[row] & newline[row]]
        assert len(own) > 3
        assert (own == of_patch.min()).all()
        assert of_patch.std() > 0.01
        alone, real, _ = relevance_of(slice(row, row + 1), slice(row, row + 1))
        np.testing.assert_allclose(alone[0][real[0]], both[row][valid[row]], rtol=0, atol=1e-5)


def on_a_mesh(llava_folder, clip_folder):
    """The body of the test below."""
    asks, kept = Relevance.from_pretrained(clip_folder), []
    ids, pixels, mask = inputs(images=(1, 1))
    for mesh in (None, jax.make_mesh((2,), ("data",))):
        model = Llava.from_pretrained(llava_folder, mesh=mesh)
        prompt = model.prompt(ids, pixels, mask, relevance=asks(QUESTIONS))
        kept.append(np.asarray(model.prefill(prompt, carve=(("input", "cdpruner", 6),)).cuts[0].indices))
    texts, weight = prompt.relevance.texts, prompt.relevance.patches.projection.weight[...]
    assert [x.sharding.is_fully_replicated for x in (texts, weight)] == [False, True]
    assert len(texts.sharding.device_set) == len(weight.sharding.device_set) == 2
    np.testing.assert_array_equal(*kept)
    print("the same")


def test_on_a_mesh(llava_folder, clip_folder):
    code = f"from tests.test_relevance import on_a_mesh; on_a_mesh({str(llava_folder)!r}, {str(clip_folder)!r})"
    assert on_devices(2, code).strip() == "the same"


class TestErrors:
    @pytest.mark.parametrize(
        ("vision", "says"),
        [
            ({"hidden_size": 30}, "CLIP's has hidden_size 30, and the model's hidden_size 24; take the CLIP that"),
            (
                {"image_size": 36, "layer_norm_eps": 1e-3},
                "has layer_norm_eps 0.001, image_size 36, and the model's layer_norm_eps 0.002, image_size 30",
            ),
        ],
    )
    def test_another_tower(self, llava, tmp_path, vision, says):
        make_clip(tmp_path, vision=VISION | vision)
        other = Relevance.from_pretrained(tmp_path)
        ids, pixels, mask = inputs(images=(1, 1))
        with pytest.raises(ValueError, match=says):
            llava.prompt(ids, pixels, mask, relevance=other(QUESTIONS))
        with pytest.raises(ValueError, match=says):
            other.check(llava)

    def test_features_of_several_layers(self, llava, asks):
        config = dataclasses.replace(llava.config, feature_layers=(3, 4))
        with pytest.raises(ValueError, match=r"one layer of the tower, and this model reads \(3, 4\)"):
            asks.check(types.SimpleNamespace(config=config, evidence=llava.evidence))

    def test_questions_and_rows(self, llava, asks):
        with pytest.raises(ValueError, match="is of 1 questions; expected one for each of the 2 rows"):
            llava.prompt(*inputs(images=(1, 1)), relevance=asks(QUESTIONS[:1]))
        for wrong in ("is it red?", [b"is it red?"]):
            with pytest.raises(TypeError, match="expected a sequence of strings, one per row"):
                asks(wrong)

    def test_a_compressor_that_cannot_do_without(self, llava, asks):
        ids, pixels, mask = inputs(images=(1, 1))
        schedule = (("input", most_relevant(), 4),)
        with pytest.raises(ValueError, match="cut most-relevant@input=4: most-relevant needs relevance to the q"):
            llava.prefill(llava.prompt(ids, pixels, mask), carve=schedule)
        with pytest.raises(ValueError, match="needs relevance, which is not known at 'tower'"):
            plan.parse((("tower", most_relevant(), 4),), num_layers=LAYERS)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"text_projection.weight": None}, "missing weight text_projection.weight"),
            (
                {"text_projection.weight": torch.ones(14, 19)},
                r"text_projection.weight has shape \[14, 19\]; config.json asks for \[14, 20\]",
            ),
            ({"text_model.extra": torch.ones(2)}, "surplus weight text_model.extra"),
        ],
    )
    def test_checkpoints(self, tmp_path, change, says):
        make_clip(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["vision_model.encoder.layers.0.mlp.fc1.weight"]  # of what is left out, nothing is missed
        weights["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]  # old files have it
        weights |= change
        save_file({key: value for key, value in weights.items() if value is not None}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=says) as caught:
            Relevance.from_pretrained(tmp_path)
        assert len(caught.value.problems) == 1

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"eos_token_id": [5, 6]}, r"eos_token_id is \[5, 6\]; expected a whole number"),
            ({"vocab_size": 50}, "its tokenizer has 58 tokens, and its model knows 50"),
            (None, r"its tokenizer has \d tokens, and its model knows 58; expected the tokenizer files"),
        ],
    )
    def test_configs(self, tmp_path, change, says):
        make_clip(tmp_path, **(change or {}))
        for path in [] if change else tmp_path.glob("token*"):
            path.unlink()
        with pytest.raises(ConfigError, match=says):
            Relevance.from_pretrained(tmp_path)

    def test_another_kind_of_model(self, llava_folder):
        with pytest.raises(ConfigError, match="has model_type 'llava'; relevance needs a 'clip'"):
            Relevance.from_pretrained(llava_folder)
