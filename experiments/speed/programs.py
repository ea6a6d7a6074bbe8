"""The two programs of one answer, prefill and decoding, compiled from shapes for any device that the shapes name.

Nothing is run and no weight is made, so the device need not be there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding

from experiments.speed import presets
from experiments.speed.inspection import needed
from models.engine import decode, plan, prefill
from models.engine.decode import DECODE_CAPACITY_BUCKET
from models.engine.prompt import round_up
from models.engine.sharding import auto_mesh, batch_sharding, weight_sharding
from models.engine.target import Target
from models.families.llava import LlavaConfig
from models.io.table import abstract_model, dotted, variables_of
from models.llava import Llava

Placing = Callable[[tuple[int, ...]], Sharding | None]  # of an array with rows of the batch in front, by its shape


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both programs, and how long it took to trace, lower and compile each.

    On a mesh everything is of one of its devices: all run the same program.

    Attributes:
      prefill: compiled.
      decode: compiled, a loop whose body is one step; None where only the prefill was asked for.
      cache_bytes: of keys and values, room for new tokens included, on each device.
      seconds: "prefill" and "decode".
    """

    prefill: Any
    decode: Any | None
    cache_bytes: int
    seconds: dict[str, float]

    @property
    def needed(self) -> int:
        """Bytes on each device, of the program that needs more."""
        return max(needed(program) for program in (self.prefill, self.decode) if program is not None)


def abstract_llava(
    config: LlavaConfig, dtype: Any, devices: list[Any], mesh_shape: tuple[int, int] | None
) -> tuple[Llava, Placing]:
    """A model of shapes alone, each on its device, and where rows of a batch go.

    Args:
      config: of the model.
      dtype: of its weights.
      devices: as many as the mesh has, or one.
      mesh_shape: lengths of the axes "data" and "model", or None.
    """
    llava = abstract_model(lambda rngs: Llava(config, dtype=dtype, rngs=rngs))
    whole = SingleDeviceSharding(devices[0])
    weight: Callable[[str, tuple[int, ...]], Sharding] = lambda _, __: whole  # noqa: E731
    row: Placing = lambda _: whole  # noqa: E731
    mesh = None
    if mesh_shape:
        mesh = auto_mesh(jax.make_mesh(mesh_shape, ("data", "model"), devices=devices))
        weight, row = weight_sharding(mesh), batch_sharding(mesh)
    placed = {
        path: variable.replace(
            jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=weight(dotted(path), variable.shape))
        )
        for path, variable in variables_of(llava).items()
    }
    nnx.update(llava, nnx.from_flat_state(placed))
    llava.mesh = mesh
    return llava, row


def compile_pair(
    llava: Llava,
    batch: int,
    *,
    carve: plan.Carve,
    prompt_tokens: int,
    new_tokens: int,
    target: Target,
    placed: Placing = lambda _: None,
    decoding: bool = True,
) -> Pair:
    """Compile what answers `batch` prompts of one image each.

    Args:
      llava: with arrays for weights, or with shapes from `abstract_llava`.
      batch: rows.
      carve: as for `Llava.generate`.
      prompt_tokens: of text.
      new_tokens: to leave room for, and to decode.
      target: what to compile for.
      placed: where the rows go; on no device in particular without it.
      decoding: compile that too.

    Raises:
      ValueError: an impossible `carve`.
      jax.errors.JaxRuntimeError: the compiler says that it does not fit.
    """
    config = llava.config
    ids, pixels = presets.inputs(config, batch=1, prompt_tokens=prompt_tokens)
    one = llava.pack(ids, pixels, None, per_image=False, bucket=1)

    def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed(shape))

    prompt = jax.tree.map(lambda x: shaped((batch, *x.shape[1:]), jnp.asarray(x[:0]).dtype), one)
    cuts = plan.resolve(plan.parse(carve, num_layers=config.text.num_layers), config.tokens_per_image)
    seed = shaped((), jnp.uint32)
    capacity = round_up(new_tokens, DECODE_CAPACITY_BUCKET)
    options: dict[str, Any] = {"plan": cuts, "decode_capacity": capacity, "target": target}
    began = time.perf_counter()
    first = prefill.prefill.lower(llava, prompt, seed, **options).compile()
    half = time.perf_counter()
    outputs = jax.eval_shape(functools.partial(prefill.prefill, **options), llava, prompt, seed)
    # Decoding takes the cache as and where the prefill leaves it.
    given = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), outputs, first.output_shardings
    )
    cache = sum(_local_bytes(x) for x in jax.tree.leaves(given.cache.layers))
    if not decoding:
        return Pair(first, None, cache, {"prefill": half - began})
    decode_config = decode.DecodeConfig.of(config)
    begun = jax.eval_shape(functools.partial(decode.first_token, decode_config=decode_config), outputs.logits, seed)
    state = decode.Generating(given.cache, *jax.tree.map(lambda x: shaped(x.shape, x.dtype), begun))
    size = round_up(max(new_tokens - 1, 1), DECODE_CAPACITY_BUCKET)
    second = decode.decode.lower(llava, state, shaped((), jnp.int32), size=size, decode_config=decode_config).compile()
    return Pair(first, second, cache, {"prefill": half - began, "decode": time.perf_counter() - half})


def _local_bytes(x: jax.ShapeDtypeStruct) -> int:
    """On each device."""
    shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
    return jnp.dtype(x.dtype).itemsize * math.prod(shape)
