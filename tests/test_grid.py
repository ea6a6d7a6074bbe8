"""The raster of visual tokens reaches methods that read it: as it is, and not as a square of their number."""

import numpy as np
import pytest

from models.engine.cuts import gather_evidence
from models.engine.plan import Cut
from models.engine.prefill import embed
from models.engine.prompt import make_prompt
from tests import tiny
from tokencarve_jax import COMPRESSORS


def tokens(prompt, *, scope="joint", images):
    model = tiny.make_llava(num_layers=1)
    hidden, sequence, _ = embed(model, prompt)
    cut = Cut("input", COMPRESSORS["uniform"], 4, scope=scope)
    return gather_evidence(cut, hidden, sequence, {}, images=images)[0]


def test_the_raster_of_one_image_and_of_each_of_several():
    model = tiny.make_llava(num_layers=1)
    ids, pixels, mask = tiny.make_inputs(texts=(9, 4), images=(1, 1))
    assert tokens(model.prompt(ids, pixels, mask), images=1).grid == (1, 5, 5)
    ids, pixels, mask = tiny.make_inputs(texts=(9, 4), images=(2, 2))
    prompt = model.prompt(ids, pixels, mask)
    assert tokens(prompt, images=2, scope="image").grid == (1, 5, 5)
    assert tokens(prompt, images=2).grid is None  # two images are no raster, whatever their number


@pytest.mark.parametrize("masked", [False, True])
def test_a_family_says_its_own(masked):
    """16 x 36 beside each other; where one does not enter, there is no raster any more."""
    ids = np.array([[3, *[tiny.IMAGE_TOKEN] * 576, 4]])
    mask = np.ones(ids.shape)
    mask[0, 5] = not masked
    prompt = make_prompt(
        ids,
        None,
        mask,
        image_token_id=tiny.IMAGE_TOKEN,
        tokens_per_image=0,
        vocab_size=tiny.CONFIG.text.vocab_size,
        features_of=[np.arange(576)],
        grid=(1, 16, 36),
    )
    assert tokens(prompt, images=1).grid == (None if masked else (1, 16, 36))
