"""Images with more than 8 bits: their high bytes, or one line where nobody knows their range."""

import numpy as np
import pytest
from PIL import Image

from experiments.data.image_files import open_image
from models.errors import CommandError

RAMP = np.linspace(0, 65535, 48 * 32).reshape(32, 48)


@pytest.mark.parametrize("end", ["png", "tif"])
def test_sixteen_bits_keep_their_high_byte(end, tmp_path):
    deep = RAMP.astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{end}")
    found = np.asarray(open_image(tmp_path / f"deep.{end}"))
    np.testing.assert_array_equal(found, np.repeat((deep // 256).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (RAMP.astype(np.int32), "from 0 to 65535"),
        (RAMP.astype(np.float32) / 65535, "from 0 to 1"),
        (RAMP.astype(np.float32) - 5, "from -5"),
        (np.full((8, 8), np.nan, np.float32), "from nan"),
    ],
)
def test_numbers_without_a_range_are_refused(array, said, tmp_path):
    Image.fromarray(array).save(tmp_path / "wide.tif")
    with pytest.raises(CommandError, match=f"wide.tif has 32-bit numbers {said}"):
        open_image(tmp_path / "wide.tif")


def test_floats_that_mean_bytes_are_read(tmp_path):
    Image.fromarray((RAMP / 257).astype(np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "float.tif"))[..., 0], (RAMP / 257).astype(np.uint8))
