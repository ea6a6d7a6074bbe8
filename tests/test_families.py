"""The published LLaVA families, small: converted, and equal to transformers in logits and greedy tokens."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from models import convert
from models.auto import FAMILIES
from models.engine import prefill
from models.engine.plan import parse, resolve
from models.engine.target import CPU
from models.errors import ConfigError
from models.io.shards import Header
from models.io.table import match, variables_of
from models.llava import Llava, LlavaNext
from tests import checkpoints, families

TOLERANCE = 1e-4
IMAGES, WORDS = (1, 2, 1), (500, 9, 40)  # unequal prompts, one and two photographs, 500 tokens of text


def as_torch(inputs):
    return {key: torch.tensor(np.asarray(value)) for key, value in inputs.items()}


@pytest.fixture(scope="module", params=families.PUBLISHED)
def family(request, tmp_path_factory):
    """Ours from a converted folder, transformers', and a batch."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = families.make(request.param, folder / "hf")
    assert len(list((folder / "hf").glob("*.safetensors"))) == families.SHARDS
    convert.convert(folder / "hf", folder / "orbax")
    return Llava.from_pretrained(folder / "orbax"), theirs, families.batch(theirs.config, IMAGES, WORDS)


def test_logits_and_greedy_tokens(family):
    ours, theirs, inputs = family
    with torch.no_grad():
        want = theirs(**as_torch(inputs)).logits.numpy()
    got, real = np.asarray(ours(**inputs)), inputs["attention_mask"].astype(bool)
    assert want[real].std() > 0.5
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=TOLERANCE)
    want = theirs.generate(**as_torch(inputs), max_new_tokens=64, do_sample=False).numpy()
    want = want[:, inputs["input_ids"].shape[1] :]
    assert want.shape == (3, 64)
    assert len({tuple(row) for row in want}) == 3
    np.testing.assert_array_equal(ours.generate(**inputs, max_new_tokens=64), want)


@pytest.mark.parametrize("name", families.PUBLISHED)
def test_full_size_is_wired(name):
    """The real config by shapes alone: every weight has its place, and a carved prompt runs through."""
    hf = families.hf_config(name)
    qwen = hf.model_type == "llava_onevision"
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(hf)
    family = {kind.model_type: kind for kind in FAMILIES}[hf.model_type]
    grids, config = family is not Llava, family.read_config(hf, {})
    llava = checkpoints.abstract(config, jnp.bfloat16, family=family)
    headers = {
        checkpoints.spell(key, "published"): Header(Path(), tuple(value.shape), "F16")
        for key, value in model.state_dict().items()
        if not (hf.tie_word_embeddings and key == "lm_head.weight")
    }
    planned, found = match(headers, family.table(config), variables_of(llava))
    assert not found
    decoder = (12 if qwen else 9) * config.text.num_layers + 3 - hf.tie_word_embeddings
    assert len(planned) == len(headers) == decoder + 4 + (26 * 16 + 5 if qwen else 24 * 16 + 7) + grids
    assert ("image_newline" in headers) == grids

    side = config.vision.image_size
    tiles = () if not grids else (37,) if qwen else (5,)
    images = {"pixel_values": np.broadcast_to(np.float32(0), (1, *tiles, 3, side, side))}
    images |= {"image_sizes": [(2304, 2304) if qwen else (672, 672)]} if grids else {}
    visual = 729 + 81 * 82 if qwen else 2880 + 48 if grids else 576  # OneVision's 162 x 162 are made 81 x 81
    ids = np.array([[1, *[config.image_token_id] * visual, *range(3, 40)]])
    prompt = llava.prompt(ids, **images)
    assert prompt.visual_slots.shape == (1, -(-visual // 64) * 64 if grids else visual)
    kept = 1648 if qwen else 654 if grids else 128  # 0.222 of 7,424 slots, of 2,944 and of 576
    for carve, left in ((0.222, kept), *[(None, prompt.visual_slots.shape[1])] * qwen):
        cuts = resolve(parse(carve, num_layers=config.text.num_layers), prompt.visual_slots.shape[1])
        run = functools.partial(prefill.prefill, plan=cuts, decode_capacity=32, target=CPU)
        out = jax.eval_shape(run, llava, prompt, jnp.uint32(0))
        assert [cut.indices.shape for cut in out.cuts] == [(1, kept)] * (carve is not None)
        assert out.logits.shape == (1, config.text.vocab_size)
        slots = prompt.input_ids.shape[1] - prompt.visual_slots.shape[1] + left + 32
        assert out.cache.layers[-1][0].size == slots * config.text.num_kv_heads * config.text.head_dim


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image_grid_pinpoints", [[84, 100]], "expected multiples of 84 pixels"),
        ("image_grid_pinpoints", [[0, 84]], "expected multiples of 84 pixels"),
        ("image_grid_pinpoints", [], "expected multiples of 84 pixels"),
        ("vision_feature_select_strategy", "full", "need 'default'"),
    ],
)
def test_grids_that_are_refused(field, value, said):
    hf = families.narrow("llava-v1.6-vicuna-7b")
    setattr(hf, field, value)
    with pytest.raises(ConfigError, match=said):
        LlavaNext.read_config(hf, {})
