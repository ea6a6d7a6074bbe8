"""safetensors written tensor by tensor are what everyone else reads."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.torch import load_file

from models.checkpoint.safetensors_writer import write_safetensors
from models.checkpoint.shards import open_folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_writer_writes_what_safetensors_reads(tmp_path, dtype):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.standard_normal((3, i)).astype(dtype) for i in range(5)} | {"scalar": np.array(2, dtype)}
    shapes = {key: value.shape for key, value in arrays.items()}
    write_safetensors(tmp_path, shapes, arrays.items(), dtype=np.dtype(dtype), shard_bytes=40)
    files = open_folder(tmp_path)
    assert not files.problems
    assert list(files.headers) == list(arrays)
    loaded = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        loaded |= load_file(path)
    for key, value in arrays.items():
        assert loaded[key].float().numpy().tolist() == value.astype(np.float32).tolist()


def test_the_writer_refuses_what_was_not_announced(tmp_path):
    with pytest.raises(ValueError, match="came where"):
        write_safetensors(tmp_path, {"a": (2,)}, [("a", np.ones(3, np.float32))], dtype=np.dtype(np.float32))
