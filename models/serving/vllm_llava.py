"""LLaVA-1.5 and LLaVA-NeXT in vLLM with K visual tokens an image; imported by vLLM alone.

The tower, the projector and the decoder are vLLM's. What a method needs to know is read off them and passed to JAX on
the same device without a copy (dlpack), and the registry's own compressor decides.

Axis letters: T tiles of an image, P patches of a tile, N visual tokens of an image, K kept, D width, H heads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import nn
from transformers import LlavaConfig
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.model_executor.models import llava, llava_next
from vllm.model_executor.models.clip import CLIPEncoderLayer, CLIPVisionModel
from vllm.multimodal import MULTIMODAL_REGISTRY

from models.engine.notation import Cut
from models.nn.tower_reads import IN_BLOCKS, READS, block_of
from models.serving.request import of_config
from tokencarve_jax import Compressor, Tokens
from tokencarve_jax.tokens import rows

_STEP = 256  # tokens of an image are padded to a multiple, so that few programs are compiled


class _Counts:
    """What vLLM derives from the number of tokens (prompts, profiling, budgets) asks this one method."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """K, or all where there are fewer."""
        every = super().get_num_image_tokens(image_width=image_width, image_height=image_height)  # type: ignore[misc]
        cut = of_config(self.get_hf_config())  # type: ignore[attr-defined]
        return min(every, int(cut.keep)) if cut else every


class _Keys:
    """Caches of the processor, of embeddings and of the decoder's prefixes know an item by its hash alone."""

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        cut = of_config(self.info.get_hf_config())  # type: ignore[attr-defined]
        return {kind: [f"{own}-{cut}" for own in found] for kind, found in hashes.items()} if cut else hashes


class _Info(_Counts, llava.LlavaProcessingInfo):
    pass


class _NextInfo(_Counts, llava_next.LlavaNextProcessingInfo):
    def get_image_size_with_most_features(self) -> Any:
        """By what the tower sees; after the cut all have K."""
        return llava_next.LlavaNextProcessingInfo(self.ctx).get_image_size_with_most_features()


class _Processor(_Keys, llava.LlavaMultiModalProcessor):
    pass


class _NextProcessor(_Keys, llava_next.LlavaNextMultiModalProcessor):
    pass


def _info(ctx: Any) -> Any:
    """Of LLaVA-1.5; Pixtral has the same architecture's name."""
    cut = of_config(ctx.get_hf_config(LlavaConfig))
    return _Info(ctx) if cut else llava._build_llava_or_pixtral_hf_info(ctx)


def _processor(info: Any, dummy_inputs: Any) -> Any:
    build = _Processor if isinstance(info, _Info) else llava._build_llava_or_pixtral_hf_processor
    return build(info, dummy_inputs)


class _QueryKeyBlock(CLIPEncoderLayer):
    """A block behind the features, whose queries and keys alone are read; its input goes on."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.self_attn.qkv_proj(self.layer_norm1(hidden_states))
        return hidden_states


class _Cuts(nn.Module):
    """Cuts behind the projector; what a request gives as `image_embeds` goes in as it is."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._seen: dict[str, torch.Tensor] = {}  # "features", and by block queries, keys and values
        self._weights: dict[str, torch.Tensor] = {}  # of the projector, by name
        cut = of_config(self.config)
        if cut is None or not isinstance(self.vision_tower, CLIPVisionModel):  # no images, or only embeddings of them
            return
        if vllm_config.lora_config and vllm_config.lora_config.enable_tower_connector_lora:
            raise ValueError("carve: LoRA of the tower counts all its tokens; leave out enable_tower_connector_lora")
        evidence, method = cut.compressor.evidence, cut.compressor.name
        if "projector" in evidence and self.config.projector_hidden_act != "gelu":
            raise ValueError(f"carve {method!r} is for projectors with gelu only; name another method")
        if "tower_features" in evidence:
            self.multi_modal_projector.register_forward_pre_hook(self._see_features)
        for _, block in _reads(cut.compressor, self.config.vision_config.num_hidden_layers).values():
            self._block(block, vllm_config, prefix, cut).register_forward_hook(functools.partial(self._see, str(block)))

    def _block(self, block: int, vllm_config: Any, prefix: str, cut: Cut) -> nn.Module:
        """The layer of queries, keys and values of a tower's block, one behind those that vLLM loads if need be."""
        layers, method = self.vision_tower.vision_model.encoder.layers, cut.compressor.name
        if block == len(layers):
            where = f"{prefix}.vision_tower.vision_model.encoder.layers.{block}".lstrip(".")
            config, quantized = self.config.vision_config, vllm_config.quant_config
            layers.append(_QueryKeyBlock(config, quantized, prefix=where, attn_cls=MMEncoderAttention))
        if block >= len(layers):
            raise ValueError(f"carve {method!r} reads block {block} of the tower, of which {len(layers)} are loaded")
        attention = layers[block].self_attn
        if attention.tp_size > 1:
            raise ValueError(
                f"carve {method!r} needs all heads of the tower, and each of {attention.tp_size} tensor-parallel ranks "
                "has its own only; serve with tensor_parallel_size=1, or name divprune, norm, pooling or uniform"
            )
        return attention.qkv_proj

    def _see_features(self, _: nn.Module, given: tuple[torch.Tensor]) -> None:
        self._seen["features"] = given[0]

    def _see(self, block: str, _: nn.Module, given: Any, out: tuple[torch.Tensor, Any]) -> None:
        self._seen[block] = out[0]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As vLLM does; a method that needs the projector gets its weights, which vLLM may pack or split."""
        cut = of_config(self.config)
        if cut is None or "projector" not in cut.compressor.evidence:
            return super().load_weights(weights)
        done = super().load_weights(self._noting(weights))
        if not {"linear_1.weight", "linear_2.weight"} <= set(self._weights):
            raise ValueError(
                f"carve {cut.compressor.name!r} needs a projector that is not quantized; name another method"
            )
        return done

    def _noting(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        device = next(self.parameters()).device
        for name, tensor in weights:
            if (own := name.partition("multi_modal_projector.")[2]) != "":
                self._weights[own] = tensor.to(device, copy=True)
            yield name, tensor

    def _process_image_input(self, image_input: Any) -> Any:
        every = super()._process_image_input(image_input)
        seen, self._seen = self._seen, {}
        cut = of_config(self.config)
        if cut is None or image_input["type"] == "image_embeds":
            return every
        first, left = 0, []
        for index, values in enumerate(every):
            tiles, places = self._layout(image_input, index)
            own = {what: array[first : first + tiles] for what, array in seen.items()}
            left.append(values if len(values) <= cut.keep else self._shorten(cut, values, own, places))
            first += tiles
        return left

    def _shorten(
        self, cut: Cut, values: torch.Tensor, seen: dict[str, torch.Tensor], places: torch.Tensor | None
    ) -> torch.Tensor:
        """[N, D] -> [K, D]; `places` as from `_layout`."""
        config, count = self.config, len(values)
        vision = config.vision_config
        side, with_class = vision.image_size // vision.patch_size, config.vision_feature_select_strategy == "full"
        whole = places is None and not with_class
        if places is not None:
            values = nn.functional.pad(values, (0, 0, 0, len(places) - count))
        shortened = _shorten(
            *jax.tree.map(_to_jax, (values, places, seen, self._weights)),
            count,
            compressor=cut.compressor,
            keep=int(cut.keep),
            grid=(1, side, side) if whole and cut.compressor.reads_grid else None,
            depth=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            skip=int(not with_class),
        )
        return torch.from_dlpack(shortened).to(values.dtype)


@MULTIMODAL_REGISTRY.register_processor(_processor, info=_info, dummy_inputs=llava.LlavaDummyInputsBuilder)
class Llava(_Cuts, llava.LlavaForConditionalGeneration):
    """vLLM's, with a cut."""

    def _layout(self, image_input: Any, index: int) -> tuple[int, None]:
        """One tile, whose patches are the tokens."""
        return 1, None


@MULTIMODAL_REGISTRY.register_processor(_NextProcessor, info=_NextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder)
class LlavaNext(_Cuts, llava_next.LlavaNextForConditionalGeneration):
    """vLLM's, with a cut."""

    def _layout(self, image_input: Any, index: int) -> tuple[int, torch.Tensor]:
        """T, and which of the T * P patches each token is, or T * P for none: numbers go the way of patches."""
        tiles = len(image_input["pixel_values"][index])
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        numbered = torch.arange(tiles * patches, dtype=torch.float64).view(tiles, patches, 1)
        newline = torch.full((1,), tiles * patches, dtype=torch.float64)
        stand_in = SimpleNamespace(config=self.config, image_newline=newline)
        merge = llava_next.LlavaNextForConditionalGeneration._merge_image_patch_embeddings
        places = merge(stand_in, image_input["image_sizes"][index], numbered, strategy="spatial_unpad")
        places = nn.functional.pad(places[:, 0], (0, -len(places) % _STEP), value=tiles * patches)
        return tiles, places.to(self.image_newline.device, torch.int32)


def _reads(compressor: Compressor, depth: int) -> dict[str, tuple[str, int]]:
    """Evidence from the tower's blocks that a method declares: what is read, and in which block."""
    return {name: block_of((name, compressor.tower_layer), depth) for name in compressor.evidence if name in IN_BLOCKS}


def _to_jax(array: torch.Tensor) -> jax.Array:
    try:
        return jax.dlpack.from_dlpack(array.detach().contiguous())
    except RuntimeError as error:
        raise RuntimeError(
            f"carve: JAX cannot use a tensor on {array.device}; install JAX for this device, such as jax[cuda13]"
        ) from error


@functools.partial(jax.jit, static_argnames=("compressor", "keep", "grid", "depth", "heads", "skip"))
def _shorten(
    values: jax.Array,
    places: jax.Array | None,
    seen: dict[str, jax.Array],
    weights: dict[str, jax.Array],
    count: int,
    *,
    compressor: Compressor,
    keep: int,
    grid: tuple[int, int, int] | None,
    depth: int,
    heads: int,
    skip: int,
) -> jax.Array:
    """One image's [N, D] -> [K, D], of `count` tokens and padding."""

    def by_token(array: jax.Array) -> jax.Array:
        """[T, P, ...] -> [N, ...]; zero for what is no patch, as in `models.families.llava_next`."""
        flat = array.reshape(-1, *array.shape[2:])
        return flat if places is None else rows(jnp.concatenate([flat, jnp.zeros_like(flat[:1])]), places)

    known: dict[str, Any] = {"key": jax.random.fold_in(jax.random.key(0), 0)}  # as `image_embeds` draws
    for name, (read, block) in _reads(compressor, depth).items():
        query, key, _ = jnp.unstack(seen[str(block)].reshape(*seen[str(block)].shape[:2], 3, heads, -1), axis=2)
        known[name] = by_token(READS[read](query, key)[:, skip:])
    if "tower_features" in compressor.evidence:
        known["tower_features"] = by_token(seen["features"])
    if "projector" in compressor.evidence:
        known["projector"] = jax.tree_util.Partial(_project, weights)
    tokens = Tokens.of(values, valid=jnp.arange(len(values)) < count, grid=grid)
    told = {name: value for name, value in known.items() if name in compressor.evidence}
    return compressor(tokens, keep=keep, **told).tokens.values


def _project(weights: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """The projector of LLaVA, [..., C] -> [..., D]."""
    hidden = features @ weights["linear_1.weight"].T + weights.get("linear_1.bias", 0)
    hidden = jax.nn.gelu(hidden, approximate=False)
    return hidden @ weights["linear_2.weight"].T + weights.get("linear_2.bias", 0)
