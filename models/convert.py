"""Convert a LLaVA checkpoint from Hugging Face format to Orbax, or back, one tensor at a time.

SOURCE is a folder with config.json and safetensors, or a model id on the hub. DEST is a new folder with the weights as
an Orbax PyTree in DEST/weights, config and processor files as they were published, and conversion.json, which says
where all came from. `Llava.from_pretrained(DEST)` and the --model flag of other commands take it.

DEST appears when it is complete, and one process at a time may make it. An interrupted conversion leaves at most a
folder named DEST.unfinished-..., which the next one removes.
"""

from __future__ import annotations

from models import interrupts

if __name__ == "__main__":
    interrupts.end_at_once_while_importing()

import argparse
import contextlib
import json
import logging
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from models import cli
from models.auto import family_of
from models.errors import CheckpointError, CommandError, ConfigError
from models.io import hashes, hub, orbax
from models.io.safetensors_writer import write_safetensors
from models.io.shards import open_folder
from models.io.table import MAPPING, abstract_model, dotted, key_of, read_weights, variables_of
from models.io.untrusted import check_file
from models.io.writing import only_writer

_EXAMPLES = """examples:
  python -m models.convert llava-hf/llava-1.5-7b-hf llava-7b --dtype=bfloat16
  python -m models.convert llava-hf/llava-v1.6-mistral-7b-hf llava-next --dtype=bfloat16 --revision=main
  python -m models.convert llava-7b llava-7b-hf --to-hf
  python -m models.convert llava-7b --verify
"""
_SLACK = 1 << 20  # bytes that the small files may take


def _check_new(dest: Path) -> None:
    if dest.exists():
        raise CommandError(f"{dest} exists already; remove it, or name another DEST")
    if not dest.absolute().parent.is_dir():
        raise CommandError(f"{dest}: there is no folder {dest.absolute().parent} to put it into")


@contextlib.contextmanager
def _claimed(dest: Path) -> Iterator[None]:
    """The right to make `dest`, which must be new; claimed before anything is downloaded for it."""
    _check_new(dest)
    with only_writer(dest, dest.with_name(f".{dest.name}.lock")):
        _check_new(dest)  # another process may just have made it
        for path in dest.absolute().parent.iterdir():  # those of processes that were killed: none of them has the lock
            if re.fullmatch(re.escape(dest.name) + r"\.unfinished-[0-9a-f]{32}", path.name):
                shutil.rmtree(path, ignore_errors=True)
        yield


@contextlib.contextmanager
def _new_folder(dest: Path, needed: int) -> Iterator[Path]:
    """A folder beside `dest` to put `needed` bytes of weights into; it becomes `dest` if the body succeeds."""
    unfinished = dest.with_name(f"{dest.name}.unfinished-{uuid.uuid4().hex}")
    free = shutil.disk_usage(dest.absolute().parent).free
    if free < needed + _SLACK:
        raise CommandError(f"{dest} needs {needed / 1e9:.2f} GB, but its disk has only {free / 1e9:.2f} GB left")
    try:
        unfinished.mkdir()
        yield unfinished
        _check_new(dest)  # an empty folder would be renamed over
        unfinished.rename(dest)
    except (CheckpointError, ConfigError, CommandError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # the last two are Orbax's for a write that failed
        reason = str(error).split(" [", 1)[0]  # without TensorStore's whole specification
        raise CommandError(f"{dest} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy_small_files(source: Path, dest: Path) -> list[Path]:
    """Copy config, tokenizer and processor files, all that is fetched from the hub but weights; gives their sources.

    Raises:
      CommandError: one is a link out of the checkpoint, which could point to any file of this machine.
    """
    inside = [source]
    if source.parent.name == "snapshots":  # the hub's cache: links to the files of all revisions
        inside.append(source.resolve().parents[1] / "blobs")
    found = [path for pattern in hub.SMALL_FILES for path in sorted(source.glob(pattern)) if path.is_file()]
    small = [path for path in found if path.name != orbax.MANIFEST and ".safetensors" not in path.name]
    for path in small:
        check_file(path, CommandError, inside=inside)
        shutil.copyfile(path, dest / path.name)
    return small


def convert(source: str | Path, dest: str | Path, *, dtype: str = "float32", revision: str | None = None) -> None:
    """Convert a checkpoint in Hugging Face format to a folder that `Llava.from_pretrained` reads.

    Memory holds a few copies of the largest tensor, however large the checkpoint.

    Args:
      source: a local folder, or a model id on the hub.
      dest: a folder that does not exist yet.
      dtype: name of the float that weights are written in.
      revision: branch, tag or commit on the hub.

    Raises:
      CommandError: `dest` exists or cannot be written.
      InUseError: another process is making `dest`.
      CheckpointError, ConfigError, FileNotFoundError: as for `Llava.from_pretrained`.
    """
    dest, to = Path(dest), jnp.dtype(dtype)
    with _claimed(dest):
        folder = hub.find_checkpoint(source, revision=revision)
        if orbax.is_converted(folder):
            raise CommandError(f"{folder} is a converted folder already; add --to-hf for the way back")
        files = open_folder(folder)
        try:
            family, config = family_of(folder)
        except ConfigError as error:
            if not files.problems:
                raise
            raise CheckpointError(folder, [*error.problems, *files.problems]) from error
        variables = variables_of(abstract_model(lambda rngs: family(config, dtype=to, rngs=rngs)))
        read = sorted({header.file for header in files.headers.values() if header is not None})
        needed = sum(int(np.prod(variable.shape)) for variable in variables.values()) * to.itemsize
        with _new_folder(dest, needed) as unfinished:
            small = _copy_small_files(folder, unfinished)
            weights = read_weights(files, family.table(config), variables, dtype=to)
            orbax.save(unfinished, [dotted(path) for path in variables], weights)
            manifest = {
                "source": str(source),
                "revision": folder.name if folder.parent.name == "snapshots" else None,
                "dtype": dtype,
                "mapping": MAPPING,
                "files": hashes.sha256([*small, *read]),
            }
            (unfinished / orbax.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            hashes.write_sums(unfinished)


def to_hf(source: str | Path, dest: str | Path) -> None:
    """Write a converted folder as safetensors that transformers loads, in the dtype of the folder, bit for bit.

    Args:
      source: a converted folder.
      dest: a folder that does not exist yet.

    Raises:
      CommandError: `source` is not a converted folder, or `dest` exists or cannot be written.
      InUseError: another process is making `dest`.
      CheckpointError, ConfigError: a damaged folder.
    """
    source, dest = Path(source), Path(dest)
    with _claimed(dest):
        if not orbax.is_converted(source):
            raise CommandError(f"{source} is not a folder that this command converted; --to-hf has nothing to read")
        family, config = family_of(source)
        dtype = orbax.read_manifest(source)["dtype"]
        to, table = jnp.dtype(dtype), family.table(config)
        reader = orbax.Reader(source, variables_of(abstract_model(lambda rngs: family(config, dtype=to, rngs=rngs))))
        groups: dict[str, list[str]] = {}
        for path in reader.shapes:  # a layer's weights are read together
            groups.setdefault(".".join(path.split(".")[:3]), []).append(path)
        rows = {path: key_of(path, table) for group in groups.values() for path in group}
        # A view as the array, or a small copy at worst: only its shape counts.
        shapes = {
            key: how.save(np.broadcast_to(np.int8(0), reader.shapes[path])).shape for path, (key, how) in rows.items()
        }

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            with tqdm(total=len(rows), desc="Writing weights", unit=" tensors", disable=None) as bar:
                for group in groups.values():
                    arrays = reader.read({path: ocp.RestoreArgs(restore_type=np.ndarray, dtype=to) for path in group})
                    for path in group:
                        key, how = rows[path]
                        yield key, how.save(arrays.pop(path))
                        bar.update()

        needed = sum(int(np.prod(shape)) for shape in shapes.values()) * to.itemsize
        with _new_folder(dest, needed) as unfinished:
            _copy_small_files(source, unfinished)
            _set_dtype(unfinished / "config.json", dtype)
            write_safetensors(unfinished, shapes, tensors(), dtype=to)
            hashes.write_sums(unfinished)


def _set_dtype(path: Path, dtype: str) -> None:
    """Make config.json name the dtype of the weights: transformers loads in the one that it names."""
    config = json.loads(path.read_text())
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if isinstance(part, dict):
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, convert, and say what went wrong in one line."""
    parser = cli.Parser(prog="python -m models.convert", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a model id such as llava-hf/llava-1.5-7b-hf")
    parser.add_argument("dest", type=Path, nargs="?", metavar="DEST", help="the folder to make; it must not exist yet")
    parser.add_argument(
        "--dtype",
        choices=cli.DTYPES,
        help="of the converted weights (default: float32, which holds every published checkpoint exactly)",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub (default: main)")
    parser.add_argument(
        "--to-hf", action="store_true", help="the way back: from a converted folder to safetensors for transformers"
    )
    parser.add_argument(
        "--verify", action="store_true", help="only compare SOURCE's files with the hashes that were recorded of them"
    )

    def body(flags: argparse.Namespace) -> None:
        # Orbax warns of features that are off on purpose, and what goes wrong in its threads is raised here as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        if flags.verify:
            if flags.dest or flags.to_hf or flags.dtype:
                raise CommandError("--verify goes with SOURCE alone")
            folder = hub.find_checkpoint(flags.source, revision=flags.revision)
            print(f"{hashes.verify(folder)} files are what was recorded")
            return
        if flags.dest is None:
            raise CommandError("DEST is missing: the folder to make")
        if flags.to_hf and (flags.dtype or flags.revision):
            raise CommandError("--to-hf writes the weights as they are; it goes with neither --dtype nor --revision")
        if flags.to_hf:
            to_hf(flags.source, flags.dest)
        else:
            convert(flags.source, flags.dest, dtype=flags.dtype or "float32", revision=flags.revision)
        print(flags.dest)

    return cli.run(body, parser, argv, interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
