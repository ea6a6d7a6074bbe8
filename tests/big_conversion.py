"""Convert a full-size checkpoint of random weights, and print how long it took and how much memory: not for CI.

    python -m tests.big_conversion [FOLDER]

Writes LLaVA-1.5-7B in bfloat16 (14 GB) into FOLDER, converts it in a process of its own (another 14 GB), checks some
weights, removes both, and fails where the peak resident memory was 3 GiB or more.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors import safe_open

from models.auto import family_of
from models.io.orbax import WEIGHTS
from models.io.safetensors_writer import write_safetensors
from models.io.table import abstract_model, dotted, key_of, variables_of
from tests.families import PUBLISHED, hf_config

LIMIT_GIB = 3
CHECKED = {
    "language_model.model.layers.17.mlp.down_proj.weight": ("decoder", "layers", "17", "mlp", "down_proj", "weight"),
    "language_model.lm_head.weight": ("decoder", "lm_head", "weight"),
    "multi_modal_projector.linear_1.weight": ("projector", "linear_1", "weight"),
}


def write_checkpoint(folder: Path, name: str) -> int:
    """Random weights in the published names, shapes and shards, streamed; gives their bytes."""
    hf_config(name).save_pretrained(folder)
    family, config = family_of(folder)
    variables = variables_of(abstract_model(lambda rngs: family(config, dtype=jnp.bfloat16, rngs=rngs)))
    shapes = {}
    for path, variable in variables.items():
        key, how = key_of(dotted(path), family.table(config))
        shapes[key] = how.save(np.broadcast_to(np.int8(0), variable.shape)).shape
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 24, np.float32).astype(ml_dtypes.bfloat16)

    def tensors():
        for key, shape in shapes.items():
            size = int(np.prod(shape))
            turned = np.roll(noise, int(rng.integers(noise.size)))
            yield key, np.resize(turned, size).reshape(shape)

    write_safetensors(folder, shapes, tensors(), dtype=np.dtype(ml_dtypes.bfloat16))
    return sum(int(np.prod(shape)) for shape in shapes.values()) * 2


def check(source: Path, dest: Path) -> None:
    """Some weights, read with Orbax alone, are the source's bit by bit."""
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    for key, path in CHECKED.items():
        with safe_open(source / index[key], framework="np") as file:
            want = file.get_tensor(key)
        tree, args = jax.ShapeDtypeStruct(want.shape, want.dtype), ocp.RestoreArgs(restore_type=np.ndarray)
        for part in reversed(path):
            tree, args = {part: tree}, {part: args}
        got = checkpointer.restore(
            (dest / WEIGHTS).absolute(),
            args=ocp.args.PyTreeRestore(item=tree, restore_args=args, partial_restore=True),
        )
        for part in path:
            got = got[part]
        assert np.array_equal(got.view(np.uint16), np.ascontiguousarray(want).view(np.uint16)), key


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where to work (default: the temporary folder)")
    parser.add_argument("--family", choices=list(PUBLISHED), default="llava-1.5-7b", help="default: %(default)s")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as scratch:
        source, dest = Path(scratch) / "hf", Path(scratch) / "orbax"
        source.mkdir()
        start = time.perf_counter()
        size = write_checkpoint(source, flags.family)
        os.sync()
        print(f"wrote {size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", "models.convert", str(source), str(dest), "--dtype=bfloat16"]
        subprocess.run(command, check=True, timeout=7200)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        check(source, dest)
    print(f"converted in {seconds:.0f} s, peak resident memory {peak:.2f} GiB (limit {LIMIT_GIB})")
    return int(peak >= LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
