"""safetensors written tensor by tensor are what everyone else reads."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.torch import load_file

from models.io.safetensors_writer import write_safetensors
from models.io.shards import open_folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_writer_writes_what_safetensors_reads(tmp_path, dtype):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.standard_normal((3, i)).astype(dtype) for i in (0, 1, 2, 4, 3)}  # t4 is over the limit
    arrays["scalar"] = np.array(2, dtype)
    shapes = {key: value.shape for key, value in arrays.items()}
    write_safetensors(tmp_path, shapes, arrays.items(), dtype=np.dtype(dtype), shard_bytes=9 * np.dtype(dtype).itemsize)
    files = open_folder(tmp_path)
    assert not files.problems
    assert files.headers.keys() == arrays.keys()
    assert len(list(tmp_path.glob("model-*-of-00004.safetensors"))) == 4
    assert files.headers["t4"].file != files.headers["t2"].file == files.headers["t0"].file
    loaded = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        loaded |= load_file(path)
    for key, value in arrays.items():
        assert loaded[key].float().numpy().tolist() == value.astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("tensors", "said"), [([("a", 3)], "came where"), ([], "shorter"), ([("a", 2), ("b", 2)], "longer")]
)
def test_the_writer_refuses_what_was_not_announced(tmp_path, tensors, said):
    arrays = [(key, np.ones(size, np.float32)) for key, size in tensors]
    with pytest.raises(ValueError, match=said):
        write_safetensors(tmp_path, {"a": (2,)}, arrays, dtype=np.dtype(np.float32))
