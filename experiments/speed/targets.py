"""Accelerators that programs are compiled for without having one: what the compiler must know, and published rates.

Rates and sizes are of one chip, dense bfloat16: NVIDIA's data sheets of A100 (SXM, 80 GB), H100 (SXM) and H200, and the
pages "TPU v5e" and "TPU v6e" of Google Cloud's documentation.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from experiments.core.cli import CommandError
from models.engine.target import CUDA, TPU, Target

# What the plugins would otherwise look for on this machine, or ask a metadata server about.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
)
_MODULES = {"cuda": "jax_plugins.xla_cuda13", "tpu": "libtpu"}
PACKAGES = {"cuda": ("jax-cuda13-plugin", "nvidia-cudnn-cu13"), "tpu": ("libtpu",)}  # whose versions matter


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      platform: "cuda" or "tpu"; also the name of the extra that brings its compiler.
      flops: peak per second, dense bfloat16.
      bandwidth: of its memory, bytes per second.
      memory: bytes.
      target: the static choices for its programs.
      about: what the compiler must be told of a GPU, as a text of XLA's `GpuTargetConfigProto`; empty for a TPU.
    """

    platform: str
    flops: float
    bandwidth: float
    memory: int
    target: Target
    about: str = ""

    @property
    def usable_memory(self) -> int:
        """Bytes that programs may use: of a GPU what `bench` lets JAX take; a TPU's compiler knows better."""
        return int(self.memory * (0.95 if self.platform == "cuda" else 1))


@dataclasses.dataclass(frozen=True)
class _Generation:
    """What GPUs of one generation share; memory of a multiprocessor in KiB, the clock in GHz."""

    capability: int
    features: str
    multiprocessors: int
    lanes: int
    shared_kib: int
    cache_mib: int
    clock: float
    flops: float


_AMPERE = _Generation(8, "NONE", 108, 64, 164, 40, 1.41, 312e12)
_HOPPER = _Generation(9, "ACCELERATED_FEATURES", 132, 128, 228, 50, 1.98, 989.4e12)


def _nvidia(name: str, generation: _Generation, *, bandwidth: float, memory: int) -> Chip:
    """A data-centre GPU."""
    about = f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {generation.capability} feature_extension: {generation.features} }}
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: {generation.shared_kib * 1024}
          shared_memory_per_block_optin: {(generation.shared_kib - 1) * 1024}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          core_count: {generation.multiprocessors} fpus_per_core: {generation.lanes}
          clock_rate_ghz: {generation.clock}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          memory_bandwidth: {int(bandwidth)} device_memory_size: {memory}
          l2_cache_size: {generation.cache_mib * 2**20} name: "{name}" device_vendor: "NVIDIA Corporation"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "{name}"
    """
    return Chip("cuda", generation.flops, bandwidth, memory, CUDA, about)


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "a100": _nvidia("NVIDIA A100-SXM4-80GB", _AMPERE, bandwidth=2.039e12, memory=85_100_068_864),
        "h100": _nvidia("NVIDIA H100 80GB HBM3", _HOPPER, bandwidth=3.35e12, memory=84_942_979_072),
        "h200": _nvidia("NVIDIA H200 141GB HBM3e", _HOPPER, bandwidth=4.8e12, memory=151_397_597_184),
        "v5e": Chip("tpu", flops=197e12, bandwidth=819e9, memory=16 * 2**30, target=TPU),
        "v6e": Chip("tpu", flops=918e12, bandwidth=1638e9, memory=32 * 2**30, target=TPU),
    }
)
FORMS = "a100, h100, h200, v5e:2x2, v6e:2x2 (a TPU's topology behind its name)"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a program is compiled for.

    Attributes:
      name: as the user gave it.
      chip: what stands there.
      topology: of a TPU, such as "2x2"; empty for GPUs.
    """

    name: str
    chip: Chip
    topology: str = ""

    def devices(self, count: int) -> list[Any]:
        """`count` devices that exist on paper alone.

        Raises:
          CommandError: there are not so many, or the compiler knows no such topology.
        """
        from jax.experimental import topologies

        options: dict[str, Any] = {"platform": self.chip.platform}
        if self.chip.about:
            options |= {"topology_name": "", "target_config": self.chip.about, "topology": f"1x1x{count}"}
        else:
            options |= {"topology_name": self.name}
        try:
            found = topologies.get_topology_desc(**options).devices
        except Exception as error:  # the plugin's own, of several classes
            raise CommandError(f"--target={self.name}: the compiler knows no such target: {error}") from error
        if len(found) < count:
            raise CommandError(f"--target={self.name} has {len(found)} chips, and the mesh asks for {count}")
        return list(found[:count])


def place(name: str) -> Place:
    """The target that a user names.

    Raises:
      CommandError: it is none, or the extra with its compiler is not installed.
    """
    kind, _, topology = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or (chip.platform == "tpu") != bool(re.fullmatch(r"\d+(x\d+)+", topology)):
        raise CommandError(f"--target={name}: expected one of {FORMS}")
    try:
        missing = importlib.util.find_spec(_MODULES[chip.platform]) is None
    except ModuleNotFoundError:  # of the package around it
        missing = True
    if missing:
        raise CommandError(
            f"--target={name}: its compiler is not installed; pip install -e '.[experiments,{chip.platform}]'"
        )
    return Place(name, chip, topology)


def mesh_shape(text: str) -> tuple[int, int]:
    """Read `--mesh`: "1x4" is 1 along "data" and 4 along "model".

    Raises:
      CommandError: it is something else.
    """
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not found:
        raise CommandError(f"--mesh={text}: expected DATAxMODEL, such as 1x4 for weights split over four chips")
    return int(found[1]), int(found[2])
