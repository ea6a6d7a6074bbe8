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

from models.engine.target import CUDA, TPU, Target
from models.errors import CommandError

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
      about: what the compiler must know of a GPU, as a text of XLA's `GpuTargetConfigProto`; empty for a TPU.
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


def _nvidia(generation: str, name: str, *, bandwidth: float, memory: int) -> Chip:
    """A data-centre GPU: what its generation shares (of a multiprocessor in KiB, the clock in GHz), and its memory."""
    capability, features, cores, lanes, shared, cache, clock, flops = {
        "ampere": (8, "NONE", 108, 64, 164, 40, 1.41, 312e12),
        "hopper": (9, "ACCELERATED_FEATURES", 132, 128, 228, 50, 1.98, 989.4e12),
    }[generation]
    about = f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {capability} feature_extension: {features} }}
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: {shared * 1024}
          shared_memory_per_block_optin: {(shared - 1) * 1024}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {clock}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          memory_bandwidth: {int(bandwidth)} device_memory_size: {memory}
          l2_cache_size: {cache * 2**20} name: "{name}" device_vendor: "NVIDIA Corporation"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "{name}"
    """
    return Chip("cuda", flops, bandwidth, memory, CUDA, about)


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "a100": _nvidia("ampere", "NVIDIA A100-SXM4-80GB", bandwidth=2.039e12, memory=85_100_068_864),
        "h100": _nvidia("hopper", "NVIDIA H100 80GB HBM3", bandwidth=3.35e12, memory=84_942_979_072),
        "h200": _nvidia("hopper", "NVIDIA H200 141GB HBM3e", bandwidth=4.8e12, memory=151_397_597_184),
        "v5e": Chip("tpu", flops=197e12, bandwidth=819e9, memory=16 * 2**30, target=TPU),
        "v6e": Chip("tpu", flops=918e12, bandwidth=1638e9, memory=32 * 2**30, target=TPU),
    }
)
FORMS = "a100, h100, h200, v5e:2x2, v6e:2x2 (a TPU's topology behind its name)"


def find(name: str) -> Chip:
    """The chip of a target.

    Raises:
      CommandError: it is not one, or the extra with its compiler is not installed.
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
    return chip


def devices(name: str, count: int) -> list[Any]:
    """`count` devices of a target, which exist on paper alone.

    Raises:
      CommandError: there are not so many, or the compiler knows no such topology.
    """
    from jax.experimental import topologies

    chip = find(name)
    options: dict[str, Any] = {"topology_name": name}
    if chip.about:
        options = {"topology_name": "", "target_config": chip.about, "topology": f"1x1x{count}"}
    try:
        found = topologies.get_topology_desc(platform=chip.platform, **options).devices
    except Exception as error:  # the plugin's own, of several classes
        raise CommandError(f"--target={name}: the compiler knows no such target: {error}") from error
    if len(found) < count:
        raise CommandError(f"--target={name} has {len(found)} chips, and the mesh asks for {count}")
    return list(found[:count])


def mesh_shape(text: str) -> tuple[int, int]:
    """Read `--mesh`: "1x4" is 1 along "data" and 4 along "model"; anything else is a CommandError."""
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not found:
        raise CommandError(f"--mesh={text}: expected DATAxMODEL, such as 1x4 for weights split over four chips")
    return int(found[1]), int(found[2])
