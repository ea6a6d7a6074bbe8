"""LLaVA (arXiv 2304.08485, 2310.03744): tower, projector and decoder in one module, loaded from real checkpoints.

Axis letters: B batch, S sequence, N visual tokens of an image, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.config import MAX_LAYERS, Fields, special_tokens
from models.engine.model import VisionLanguageModel
from models.engine.prompt import Prompt, make_prompt
from models.engine.visual import TowerRequest, View, Visual, projection
from models.errors import ConfigError
from models.families.tables import decoder_table, projector_table, tower_table
from models.io.table import Table
from models.nn.clip import BlockCut, ClipVisionTower
from models.nn.clip_config import VisionConfig, vision_config
from models.nn.linear import ACTIVATIONS, Linear
from models.nn.llama import Decoder
from models.nn.llama_config import TextConfig, text_config
from models.nn.tower_reads import IN_BLOCKS, block_of
from tokencarve_jax import Compressed, Tokens
from tokencarve_jax.methods.tome import block_counts
from tokencarve_jax.tokens import rows


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """Tower, projector and decoder of a LLaVA.

    Attributes:
      vision: the tower.
      text: the decoder.
      image_token_id: the placeholder, once per visual token.
      feature_layers: hidden states of the tower that are concatenated as features; 0 is the embedding's output,
        `num_layers` the last layer's.
      keep_class_token: whether the decoder gets the class token too (`vision_feature_select_strategy` "full").
      projector_activation: between the two linear layers of the projector.
      projector_bias: whether these have a bias.
      eos_token_ids: generation stops at any of them.
      pad_token_id: fills rows that have ended.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    feature_layers: tuple[int, ...]
    keep_class_token: bool
    projector_activation: str
    projector_bias: bool
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of what the tower sees as one image."""
        return self.vision.num_patches + int(self.keep_class_token)

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Frames, rows and columns of these; None with the class token, which has no place in the raster."""
        side = self.vision.image_size // self.vision.patch_size
        return None if self.keep_class_token else (1, side, side)


def llava_config(
    hf: Any,
    generation: Mapping[str, Any] = MappingProxyType({}),
    *,
    more: tuple[str, ...] = (),
    tower: Callable[[Any], VisionConfig] = vision_config,
) -> LlavaConfig:
    """`LlavaConfig` from a transformers config of that name.

    Args:
      hf: the config.
      generation: what `generation_config.json` holds, which takes precedence for special tokens.
      more: problems that were found before.
      tower: reads the tower's config.

    Raises:
      ConfigError: with every architecture, activation and feature choice that is not supported.
    """
    parts: list[Any] = []
    read = Fields(hf)
    for read_part, part in ((tower, hf.vision_config), (text_config, hf.text_config)):
        try:
            parts.append(read_part(part))
        except ConfigError as error:
            read.problems += error.problems
    depth = parts[0].num_layers + 1 if parts and isinstance(parts[0], VisionConfig) else MAX_LAYERS + 1
    vocabulary = parts[-1].vocab_size if parts and isinstance(parts[-1], TextConfig) else 2**31
    layers = read.wholes("vision_feature_layer", -depth, depth - 1)
    keep_class_token = read.one_of("vision_feature_select_strategy", ("default", "full")) == "full"
    activation = read.one_of("projector_hidden_act", ACTIVATIONS)
    image_token_id = read.whole("image_token_id", 0, vocabulary - 1)
    bias, tied = read.flag("multimodal_projector_bias"), read.flag("tie_word_embeddings")
    eos_ids, pad = special_tokens(hf, generation, vocabulary, read)
    if problems := [*more, *read.problems]:
        raise ConfigError(*problems)
    vision, text = parts
    return LlavaConfig(
        vision=vision,
        # transformers 5 keeps the tie on the outer config, older files on the decoder's: either one ties.
        text=dataclasses.replace(text, tie_word_embeddings=tied or text.tie_word_embeddings),
        image_token_id=image_token_id,
        feature_layers=tuple(layer % depth for layer in layers),
        keep_class_token=keep_class_token,
        projector_activation=activation,
        projector_bias=bias,
        eos_token_ids=eos_ids,
        pad_token_id=pad,
    )


class Projector(nnx.Module):
    """Two linear layers from the tower's width to the decoder's."""

    def __init__(self, config: LlavaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = config.projector_activation
        width_in, width = config.vision.hidden_size * len(config.feature_layers), config.text.hidden_size
        bias = config.projector_bias
        self.linear_1 = Linear(width_in, width, use_bias=bias, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(width, width, use_bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """[images, N, tower width] -> [images, N, D]."""
        return self.linear_2(ACTIVATIONS[self.activation](self.linear_1(features)))


class Llava(VisionLanguageModel):
    """A LLaVA model. `Llava.from_pretrained` loads one with weights, LLaVA-NeXT included.

    Args:
      config: all architecture constants.
      dtype: of weights and of hidden states; norms, rotary embedding, softmax and logits are float32 throughout.
      rngs: for the random initialisation.
    """

    model_type = "llava"
    tower: ClassVar[Any] = ClipVisionTower

    def __init__(self, config: LlavaConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.mesh = None
        self.target = None
        self.vision_tower = self.tower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.text, dtype=dtype, rngs=rngs)

    @classmethod
    def read_config(cls, hf: Any, generation: Mapping[str, Any]) -> LlavaConfig:
        """See `llava_config`."""
        return llava_config(hf, generation)

    @staticmethod
    def table(config: LlavaConfig) -> Table:
        """Tower, projector and decoder."""
        return [*tower_table(config.vision), *projector_table(), *decoder_table(config.text)]

    def pack(
        self,
        input_ids: Any,
        pixel_values: Any,
        attention_mask: Any,
        *,
        per_image: bool,
        bucket: int,
        border: Any = None,
        features_of: Any = None,
        **unknown: Any,
    ) -> Prompt:
        """See `make_prompt`."""
        if unknown:
            raise TypeError(f"{self.model_type} models do not take {', '.join(unknown)}")
        self.check_pixels(pixel_values)
        return make_prompt(
            input_ids,
            pixel_values,
            attention_mask,
            image_token_id=self.config.image_token_id,
            tokens_per_image=self.config.tokens_per_image,
            vocab_size=self.config.text.vocab_size,
            bucket=bucket,
            features_of=features_of,
            per_image=per_image,
            border=border,
            grid=self.config.grid if features_of is None else None,
        )

    def views(self, input_ids: Any, pixel_values: Any, **inputs: Any) -> list[View]:
        """See `VisionLanguageModel.views`: of each image its square, as far as whole patches go."""
        size, each = self.config.vision.patch_size, self.config.tokens_per_image
        side = self.config.vision.image_size // size
        tokens = int(self.config.keep_class_token) + np.arange(side**2).reshape(side, side)
        return [
            View(pixels[:, : side * size, : side * size], number * each + tokens)
            for number, pixels in enumerate(np.asarray(pixel_values))
        ]

    def check_pixels(self, pixel_values: Any, name: str = "pixel_values") -> None:
        """Raise ValueError if pixels [..., C, height, width] are not what the tower takes; None is fine."""
        vision = self.config.vision
        shape, wanted = np.shape(pixel_values), (vision.num_channels, vision.image_size, vision.image_size)
        if pixel_values is not None and shape[-3:] != wanted:
            raise ValueError(f"{name} has shape {shape}; the tower takes images of {wanted}")

    def image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Visual tokens of images [images, C, image_size, image_size]: [images, N, D] in the weights' dtype."""
        tokens = Llava.visual(self, pixel_values, TowerRequest()).tokens
        return tokens.reshape(len(pixel_values), -1, tokens.shape[-1])

    def visual(self, pixel_values: jax.Array, request: TowerRequest, key: jax.Array | None = None) -> Visual:
        """Visual tokens of images, in the weights' dtype, and evidence about them.

        Args:
          pixel_values: [images, C, image_size, image_size].
          request: what to read, and where to cut.
          key: PRNG key for a cut in the tower.
        """
        config, cut = self.config, request.cut
        first = 0 if config.keep_class_token else 1
        out = self.vision_tower(
            pixel_values,
            feature_layers=config.feature_layers,
            reads=tuple(
                dict.fromkeys(
                    block_of(what, config.vision.num_layers) for what in request.evidence if what[0] in IN_BLOCKS
                )
            ),
            cut=None if cut is None or cut.compressor.at != "tower" else _block_cut(cut, config),
            kernel=request.kernel,
        )
        features = out.features[:, first:]
        evidence = {
            what: out.evidence[block_of(what, config.vision.num_layers)][:, first:]
            if what[0] in IN_BLOCKS
            else features
            for what in request.evidence
        }
        left = out.merged
        if cut is not None and left is None:
            compressor = cut.compressor
            known: dict[str, Any] = {"key": key, "projector": projection(self.projector)}
            known |= {name: array for (name, layer), array in evidence.items() if layer == compressor.tower_layer}
            known = {name: value for name, value in known.items() if name in compressor.evidence}
            left = compressor(Tokens.of(features, grid=config.grid), keep=int(cut.keep), **known)
            features = left.tokens.values
            evidence = {what: rows(array, left.indices) for what, array in evidence.items()}
        tokens = self.projector(features)
        tokens = tokens.reshape(-1, tokens.shape[-1])
        flat = {what: array.reshape(-1, *array.shape[2:]) for what, array in evidence.items()}
        if left is None:
            return Visual(tokens, flat)
        return Visual(tokens, flat, left.indices, left.tokens.sizes, left.assignment)


def _block_cut(cut: Any, config: LlavaConfig) -> BlockCut:
    if config.keep_class_token or len(config.feature_layers) > 1:
        raise ValueError(f"cut {cut}: merging in the tower's blocks needs features of one layer, without class token")
    compressor = cut.compressor

    def shorten(tokens: Tokens, keep: int, keys: jax.Array) -> Compressed:
        return compressor(tokens, keep=keep, **({"tower_keys": keys} if "tower_keys" in compressor.evidence else {}))

    blocks = config.feature_layers[0]
    return BlockCut(shorten, block_counts(config.vision.num_patches, int(cut.keep), blocks))
