"""The models that the benchmark builds with random weights, and the prompt that it gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from models.engine.model import VisionLanguageModel
from models.engine.plan import TOKENCARVE_LAYER, Cut, parse, resolve
from models.engine.prompt import Prompt
from models.errors import CommandError
from models.families.llava import LlavaConfig
from models.io.table import abstract_model
from models.llava import Llava
from models.nn.clip_config import VisionConfig
from models.nn.llama_config import TextConfig
from tokencarve_jax import COMPRESSORS

Model = TypeVar("Model", bound=VisionLanguageModel)
SYSTEM_TOKENS = 36  # of `--prompt-tokens`, those before the image; as in the usual LLaVA-1.5 prompt


def _llava_1_5(*, width: int, intermediate: int, layers: int, heads: int, vision: VisionConfig) -> LlavaConfig:
    """LLaVA-1.5's architecture at some size."""
    text = TextConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        activation="silu",
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=1.0,
        rope_sections=(width // heads // 2,),
        rope_interleaved=False,
        attention_bias=False,
        output_bias=False,
        head_norms=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        sliding_window=None,
        max_positions=4096,
    )
    return LlavaConfig(
        vision=vision,
        text=text,
        image_token_id=32000,
        feature_layers=(vision.num_layers - 1,),
        keep_class_token=False,
        projector_activation="gelu",
        projector_bias=True,
        eos_token_ids=(),  # so that every run decodes as many tokens as it was asked for
        pad_token_id=32001,
    )


_CLIP_L = VisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
    num_channels=3,
    image_size=336,
    patch_size=14,
    activation="quick_gelu",
    layer_norm_eps=1e-5,
)
_CLIP_SMALL = dataclasses.replace(_CLIP_L, hidden_size=256, intermediate_size=1024, num_layers=6, num_heads=4)

PRESETS: Mapping[str, LlavaConfig] = MappingProxyType(
    {
        "small": _llava_1_5(width=768, intermediate=2048, layers=16, heads=12, vision=_CLIP_SMALL),
        "llava-1.5-7b": _llava_1_5(width=4096, intermediate=11008, layers=32, heads=32, vision=_CLIP_L),
        "llava-1.5-13b": _llava_1_5(width=5120, intermediate=13824, layers=40, heads=40, vision=_CLIP_L),
    }
)


def shallow(config: LlavaConfig, layers: int) -> LlavaConfig:
    """The same with at most so many layers in the decoder, and in the tower up to its features."""
    text = dataclasses.replace(config.text, num_layers=min(layers, config.text.num_layers))
    vision = dataclasses.replace(config.vision, num_layers=min(layers + 1, config.vision.num_layers))
    return dataclasses.replace(config, text=text, vision=vision, feature_layers=(vision.num_layers - 1,))


def cut_layer(config: LlavaConfig) -> int:
    """Before which layer TokenCarve cuts: the third, or of two layers the second."""
    return min(TOKENCARVE_LAYER, config.text.num_layers - 1)


def tokencarve(config: LlavaConfig, keep: float | int, information: str) -> Cut:
    """TokenCarve by some route to its score, with a count to keep.

    Raises:
      CommandError: an impossible `keep`, or one that leaves all tokens.
    """
    compressor = COMPRESSORS["tokencarve"].replace(f"tokencarve-{information}", information=information)
    visual = config.tokens_per_image
    try:
        schedule = parse(((cut_layer(config), compressor, keep),), num_layers=config.text.num_layers)
        cuts = resolve(schedule, visual).cuts
    except ValueError as error:
        raise CommandError(f"keep={keep}: {error}") from error
    if not cuts:
        raise CommandError(f"keep={keep} leaves all {visual} visual tokens: nothing to compare")
    return cuts[0]


def random_llava(config: LlavaConfig, dtype: Any) -> Llava:
    """See `random_model`."""
    return random_model(Llava, config, dtype)


def random_model(family: Callable[..., Model], config: Any, dtype: Any) -> Model:
    """A model with random weights, made on the default device in `dtype`, one array at a time.

    One program per distinct shape, so that 13 billion weights need neither a host copy nor a long compilation.
    """
    abstract = abstract_model(lambda rngs: family(config, dtype=dtype, rngs=rngs))
    normal = jax.jit(
        lambda key, shape: (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype), static_argnames="shape"
    )
    keys = (jax.random.fold_in(jax.random.key(0), index) for index in range(len(jax.tree.leaves(abstract))))

    def weight(path: Any, leaf: Any) -> jax.Array:
        key, name = next(keys), jax.tree_util.keystr(path)
        if "scale" in name:
            return jnp.ones(leaf.shape, dtype)
        return jnp.zeros(leaf.shape, dtype) if "bias" in name else normal(key, leaf.shape)

    return jax.block_until_ready(jax.tree_util.tree_map_with_path(weight, abstract))


def inputs(config: LlavaConfig, *, batch: int, prompt_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """What a processor would give: 36 system tokens (or all, where there are fewer), one image, the rest of the prompt.

    Returns:
      input_ids [batch, prompt_tokens + N] int32 and pixel_values [batch, C, image_size, image_size] float32.
    """
    rng = np.random.default_rng(0)
    system = min(SYSTEM_TOKENS, prompt_tokens - 1)
    words = rng.integers(3, min(config.image_token_id, config.text.vocab_size), (batch, prompt_tokens), dtype=np.int32)
    image = np.full((batch, config.tokens_per_image), config.image_token_id, np.int32)
    side = config.vision.image_size
    pixels = rng.normal(size=(batch, config.vision.num_channels, side, side)).astype(np.float32)
    return np.concatenate([words[:, :system], image, words[:, system:]], axis=1), pixels


def on_device(llava: Llava, ids: np.ndarray, pixels: np.ndarray) -> Prompt:
    """The packed prompt without padding, already on the device: its transfer is not timed."""
    return jax.device_put(llava.prompt(ids, pixels, bucket=1))
