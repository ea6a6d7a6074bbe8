"""LLaVA (arXiv 2304.08485, 2310.03744): tower, projector and decoder in one module, loaded from real checkpoints.

Axis letters: B batch, S sequence, N visual tokens of an image, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from models import anyres, decoding, prefilling, schedule
from models.checkpoint import abstract_model, load_weights
from models.clip import ClipVisionTower
from models.config import LlavaConfig, read_config
from models.hub import find_checkpoint
from models.layers import ACTIVATIONS, Linear, causal_mask
from models.llama import Decoder
from models.prompt import Prompt, make_prompt, pack_order, round_up
from models.sampling import GREEDY, Sampling
from models.sharding import auto_mesh, place_batch, weight_sharding
from models.tables import llava_table

ROOM_BUCKET = 32  # the cache's room for new tokens is rounded up to a multiple of this


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


@jax.jit
def _forward(llava: Llava, prompt: Prompt) -> jax.Array:
    hidden = prefilling.embed(llava, prompt)
    batch, size, _ = hidden.shape
    positions = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (batch, size))
    mask = causal_mask(prompt.lengths, size, positions=positions, window=llava.decoder.config.sliding_window)
    return llava.decoder.logits(llava.decoder(hidden, positions, mask))


class Llava(nnx.Module):
    """A LLaVA model. `Llava.from_pretrained` is the way to get one with weights.

    Args:
      config: all architecture constants.
      dtype: of weights and of hidden states; norms, rotary embedding, softmax and logits are float32 throughout.
      rngs: for the random initialisation.
    """

    def __init__(self, config: LlavaConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.mesh: Mesh | None = None
        self.vision_tower = ClipVisionTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.text, dtype=dtype, rngs=rngs)
        self.image_newline = (  # LLaVA-NeXT ends each row of an image's grid with it
            None
            if config.image_grid_pinpoints is None
            else nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (config.text.hidden_size,), dtype))
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        revision: str | None = None,
    ) -> Llava:
        """Load a checkpoint in Hugging Face format, or one that `python -m models.convert` made.

        Args:
          source: a local folder with `config.json` and safetensors, a converted folder, or a model id on the Hugging
            Face hub.
          dtype: weights are cast to it as they are read.
          mesh: with an axis "data", "model" or both; each weight is placed on it as it is read, and batches are split
            over "data". None is the default device.
          revision: branch, tag or commit on the hub; None is its main branch.

        Returns:
          The model.

        Raises:
          ConfigError: an architecture that is not supported.
          CheckpointError: weights that are missing, surplus, damaged or of the wrong shape; it lists them all.
          FileNotFoundError: neither a folder nor a model id that the hub has.
          ValueError: a mesh with another axis.
        """
        from models import converted  # here, because it takes a second that `--help` should not wait for

        folder = find_checkpoint(source, revision=revision)
        config = read_config(folder)
        mesh = None if mesh is None else auto_mesh(mesh)
        abstract = abstract_model(lambda rngs: cls(config, dtype=dtype, rngs=rngs))
        placing = None if mesh is None else weight_sharding(mesh)
        if converted.is_converted(folder):
            llava = converted.restore(abstract, folder, dtype=dtype, sharding=placing)
        else:
            llava = load_weights(abstract, folder, llava_table(config), dtype=dtype, sharding=placing)
        llava.mesh = mesh
        return llava

    def image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Visual tokens of images.

        Args:
          pixel_values: [images, C, image_size, image_size].

        Returns:
          [images, N, D] in the weights' dtype.
        """
        features = self.vision_tower(pixel_values, feature_layers=self.config.feature_layers)
        if not self.config.keep_class_token:
            features = features[:, 1:]
        return self.projector(features)

    def visual_rows(self, pixel_values: jax.Array) -> jax.Array:
        """All that `Prompt.visual_features` counts: the features of all tiles, and LLaVA-NeXT's newline as last row.

        Args:
          pixel_values: [tiles, C, image_size, image_size].

        Returns:
          [rows, D].
        """
        rows = self.image_features(pixel_values)
        rows = rows.reshape(-1, rows.shape[-1])
        if self.image_newline is None:
            return rows
        return jnp.concatenate([rows, self.image_newline[...][None].astype(rows.dtype)])

    def prompt(
        self,
        input_ids: Any,
        pixel_values: Any = None,
        attention_mask: Any = None,
        image_sizes: Any = None,
        **options: Any,
    ) -> Prompt:
        """Pack a processor's output for the compiled programs; shapes and errors as in `models.prompt.make_prompt`."""
        if self.config.image_grid_pinpoints is not None and pixel_values is not None:
            pixel_values, rows = anyres.lay_out(pixel_values, image_sizes, self.config)
            options = {"visual_rows": rows} | options
        prompt = make_prompt(
            input_ids,
            pixel_values,
            attention_mask,
            image_token_id=self.config.image_token_id,
            tokens_per_image=self.config.tokens_per_image,
            vocab_size=self.config.text.vocab_size,
            **options,
        )
        return place_batch(prompt, self.mesh)

    def __call__(
        self, input_ids: Any, pixel_values: Any = None, attention_mask: Any = None, image_sizes: Any = None
    ) -> jax.Array:
        """Logits of a whole sequence, nothing cached or carved.

        Args:
          input_ids: [B, S] integers, image placeholders expanded, as the Hugging Face processor gives them.
          pixel_values: [images, C, height, width] of all rows in order, or None without images. LLaVA-NeXT's have
            their tiles: [images, tiles, C, height, width].
          attention_mask: [B, S], non-zero for real tokens; padding may stand on either side.
          image_sizes: [images, 2] height and width before resizing; LLaVA-NeXT alone needs them.

        Returns:
          [B, S, V] float32. Rows at padding are zero.

        Raises:
          ValueError: see `make_prompt`.
        """
        mask = np.ones(np.shape(input_ids), bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        logits = _forward(self, self.prompt(input_ids, pixel_values, attention_mask, image_sizes))
        unpack = np.argsort(pack_order(mask), axis=1)  # the inverse permutation
        return jnp.where(mask[..., None], jnp.take_along_axis(logits, unpack[..., None], axis=1), 0)

    def generate(
        self,
        input_ids: Any,
        pixel_values: Any = None,
        *,
        attention_mask: Any = None,
        image_sizes: Any = None,
        max_new_tokens: int,
        carve: schedule.Carve = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> jax.Array:
        """Generate, with the visual tokens carved on the way where asked.

        Args:
          input_ids: [B, S] integers, image placeholders expanded.
          pixel_values: [images, C, height, width] of all rows in order, or None; with tiles for LLaVA-NeXT.
          attention_mask: [B, S], non-zero for real tokens; padding may stand on either side.
          image_sizes: [images, 2] height and width before resizing; LLaVA-NeXT alone needs them.
          max_new_tokens: at least 1.
          carve: None, a keep (a fraction such as 0.222, or a count such as 128: TokenCarve at layer 2), or a schedule
            `((2, "tokencarve", 0.222),)` of (layer, registered method, keep). All images of a row share one budget;
            with "tokencarve-per-image" each has its own.
          sampling: greedy unless given.
          seed: of sampling, and of methods that draw.

        Returns:
          [B, <= max_new_tokens] int32, new tokens only. A row that ended early is filled with the pad token.

        Raises:
          ValueError, TypeError: inputs that do not belong together, an impossible schedule.
        """
        # One chunk: nothing comes back to the host before all is said.
        chunks = self.stream(
            input_ids,
            pixel_values,
            attention_mask=attention_mask,
            image_sizes=image_sizes,
            max_new_tokens=max_new_tokens,
            carve=carve,
            sampling=sampling,
            seed=seed,
            chunk=max_new_tokens,
        )
        return jnp.concatenate(list(chunks), axis=1)

    def stream(
        self,
        input_ids: Any,
        pixel_values: Any = None,
        *,
        attention_mask: Any = None,
        image_sizes: Any = None,
        max_new_tokens: int,
        carve: schedule.Carve = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        chunk: int = 8,
    ) -> Iterator[jax.Array]:
        """The tokens of `generate`, as they come: the first alone, then `chunk` at a time.

        Args:
          input_ids: as for `generate`, and so are the other arguments.
          pixel_values: see `generate`.
          attention_mask: see `generate`.
          image_sizes: see `generate`.
          max_new_tokens: see `generate`.
          carve: see `generate`.
          sampling: see `generate`.
          seed: see `generate`.
          chunk: tokens between two looks of the host at the device.

        Yields:
          [B, 1], then [B, <= chunk] int32.
        """
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 1")
        config = self.config
        choice = decoding.Choice(sampling, config.eos_token_ids, config.pad_token_id)
        cuts = schedule.parse(carve, num_layers=config.text.num_layers)
        per_image = any(schedule.is_per_image(cut.method) for cut in cuts)
        prompt = self.prompt(input_ids, pixel_values, attention_mask, image_sizes, per_image=per_image)
        prefilled = self.prefill(prompt, carve=carve, seed=seed, room=round_up(max_new_tokens, ROOM_BUCKET))
        state = decoding.first_token(prefilled.logits, prefilled.cache, np.uint32(seed), choice=choice)
        yield state.token[:, None]
        left = max_new_tokens - 1
        while left and not state.ended.all():
            limit, size = min(left, chunk), round_up(min(left, chunk), ROOM_BUCKET)
            out, written, state = decoding.decode(self, state, np.int32(limit), size=size, choice=choice)
            yield out[:, : int(written)]
            left -= limit

    def prefill(
        self, prompt: Prompt, *, carve: schedule.Carve = None, seed: int = 0, room: int = 0
    ) -> prefilling.Prefilled:
        """First half of `generate`: see `models.prefilling.prefill`. `carve` as there.

        A fraction is of N, the visual tokens of the row that has most. For LLaVA-NeXT, whose images bring any number,
        N is rounded up to a multiple of `models.prompt.BUCKET` first, so that prompts share compiled programs: up to
        `keep * (BUCKET - 1)` tokens more than the fraction of the real number stay, never fewer. Rows with fewer
        visual tokens keep as many as the richest, or all of theirs. With budgets per image, N is the longest image's.
        """
        cuts = schedule.parse(carve, num_layers=self.config.text.num_layers)
        cuts = schedule.resolve(cuts, prompt.visual_positions.shape[1], images=prompt.images)
        return prefilling.prefill(self, prompt, np.uint32(seed), schedule=cuts, room=room)
