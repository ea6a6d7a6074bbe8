"""What every family of models shares: loading, scoring, generating; what differs is in `models.families`.

Axis letters: B batch, S sequence, N visual tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from models.engine import decode, embed, plan, prefill
from models.engine.cuts import without_unused
from models.engine.loop import Whole, run_layers
from models.engine.prefill import Prefilled
from models.engine.prompt import BUCKET, Prompt, pack_order, round_up, within_context
from models.engine.relevance import QuestionEmbeddings, attach
from models.engine.sampling import GREEDY, Sampling
from models.engine.sequence import unpacked
from models.engine.sharding import auto_mesh, place_batch, weight_sharding
from models.engine.target import CPU, Target, holding
from models.engine.visual import TowerRequest, View, Visual
from models.errors import ConfigError
from models.io import hashes, hub
from models.io.table import Table, abstract_model, load_weights
from models.nn.llama import Decoder
from tokencarve_jax import EVIDENCE


@functools.partial(jax.jit, static_argnames=("target",))
def score(model: VisionLanguageModel, prompt: Prompt, *, target: Target = CPU) -> jax.Array:
    """Logits [B, S, V] of every token of a packed batch, without cache and cuts."""
    hidden, sequence, _ = embed.embed(model, prompt, kernel=target.kernel)
    flow = Whole(model.decoder, sequence, kernel=target.kernel)
    return model.decoder.logits(run_layers(model.decoder.layers, hidden, flow))


class VisionLanguageModel(nnx.Module):
    """A vision tower, a projector and a decoder; families are its subclasses.

    Attributes:
      model_type: what config.json calls the family.
      square: whether an image is one square raster of patches.
      evidence: what compressors may be told about its tokens; cuts that need more are refused.
      config: all architecture constants.
      decoder: the language model.
      mesh: where weights and batches are split; None is the default device.
      target: what programs are compiled for; None is the device that holds the weights.
    """

    model_type: ClassVar[str]
    square: ClassVar[bool] = True
    evidence: ClassVar[frozenset[str]] = frozenset(EVIDENCE)
    config: Any
    decoder: Decoder
    mesh: Mesh | None = None
    target: Target | None = None

    def __init__(self, config: Any, *, dtype: Any = jnp.float32, rngs: Any):
        raise NotImplementedError("use one of models.families")

    @classmethod
    def read_config(cls, hf: Any, generation: dict[str, Any]) -> Any:
        """The family's constants, from transformers' config and the content of generation_config.json."""
        raise NotImplementedError

    @staticmethod
    def table(config: Any) -> Table:
        """How the keys of checkpoints map to the model's weights."""
        raise NotImplementedError

    def visual(self, pixel_values: Any, request: TowerRequest, key: jax.Array | None = None) -> Visual:
        """Visual tokens of what `pack` gives as `Prompt.pixel_values`, and the evidence that compressors ask for."""
        raise NotImplementedError

    def pack(
        self, input_ids: Any, pixel_values: Any, attention_mask: Any, *, per_image: bool, bucket: int, **inputs: Any
    ) -> Prompt:
        """The output of the family's processor as a `Prompt` of NumPy arrays."""
        raise NotImplementedError

    def views(self, input_ids: Any, pixel_values: Any, **inputs: Any) -> list[View]:
        """Where the visual tokens of one prompt lie, from what `pack` takes; inputs of other names are ignored."""
        raise NotImplementedError

    @classmethod
    def family_of(cls, folder: Path) -> tuple[type[VisionLanguageModel], Any]:
        """The family of a checkpoint folder, this class or a subclass, and its constants.

        Raises:
          ConfigError: the config cannot be read, names another family, or asks for something unsupported.
        """
        hf, generation = hub.read_hf_config(folder)
        families = {kind.model_type: kind for kind in _kinds(cls)}
        if hf.model_type not in families:
            known = " and ".join(map(repr, sorted(families)))
            raise ConfigError(f"config.json has model_type {hf.model_type!r}; supported are {known}")
        return families[hf.model_type], families[hf.model_type].read_config(hf, generation)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        revision: str | None = None,
        verify: bool = False,
    ) -> Self:
        """Load a checkpoint in Hugging Face format, or one that `python -m models.convert` made.

        Args:
          source: a local folder with `config.json` and safetensors, a converted folder, or a model id on the hub.
          dtype: weights are cast to it as they are read.
          mesh: with an axis "data", "model" or both; each weight is placed on it as it is read, and batches are split
            over "data". None is the default device.
          revision: branch, tag or commit on the hub; None is its main branch.
          verify: first compare every file with the hash that a conversion, or the hub, recorded of it.

        Raises:
          ConfigError: the architecture is not supported.
          CheckpointError: weights are missing, surplus, damaged, altered or of the wrong shape; it lists them all.
          FileNotFoundError: `source` is neither a folder nor a model id that the hub has.
          ValueError: the mesh has an unknown axis.
        """
        from models.io import orbax  # here, because it takes a second that `--help` should not wait for

        folder = hub.find_checkpoint(source, revision=revision)
        if verify:
            hashes.verify(folder)
        family, config = cls.family_of(folder)
        mesh = None if mesh is None else auto_mesh(mesh)
        abstract = abstract_model(lambda rngs: family(config, dtype=dtype, rngs=rngs))
        placing = None if mesh is None else weight_sharding(mesh)
        if orbax.is_converted(folder):
            model = orbax.restore(abstract, folder, dtype=dtype, sharding=placing)
        else:
            model = load_weights(abstract, folder, family.table(config), dtype=dtype, sharding=placing)
        model.mesh = mesh
        return model

    def schedule(self, carve: plan.Carve) -> plan.Schedule:
        """What `generate` takes as `carve`, as cuts that this family can carry out; ValueError, TypeError if not."""
        cuts, axes = plan.parse(carve, num_layers=self.config.text.num_layers), len(self.config.text.rope_sections)
        return plan.for_family(cuts, self.model_type, evidence=self.evidence, axes=axes)

    def prompt(
        self,
        input_ids: Any,
        pixel_values: Any = None,
        attention_mask: Any = None,
        *,
        relevance: QuestionEmbeddings | None = None,
        per_image: bool = False,
        bucket: int = BUCKET,
        **inputs: Any,
    ) -> Prompt:
        """Pack a processor's output for the compiled programs; shapes and errors as in `models.engine.prompt`.

        Args:
          input_ids: [B, S] integers, image placeholders expanded.
          pixel_values: of all rows in order, or None.
          attention_mask: [B, S], non-zero for real tokens; None means all are.
          relevance: the rows' questions, from `models.relevance.Relevance`, for compressors that ask for it.
          per_image: give each image equally many slots of its own, for cuts with a budget for each image.
          bucket: S is rounded up to a multiple of this.
          **inputs: whatever else the checkpoint's processor returns, by its own name.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        packed = self.pack(input_ids, pixel_values, attention_mask, per_image=per_image, bucket=bucket, **given)
        return attach(relevance, place_batch(within_context(packed, self.config.text.max_positions), self.mesh), self)

    def __call__(
        self, input_ids: Any, pixel_values: Any = None, attention_mask: Any = None, **inputs: Any
    ) -> jax.Array:
        """Logits of a whole sequence, without cache and cuts.

        Args:
          input_ids: [B, S] integers, image placeholders expanded, as the Hugging Face processor gives them.
          pixel_values: of all rows in order, as the family's processor gives them, or None without images.
          attention_mask: [B, S], non-zero for real tokens; padding may stand on either side.
          **inputs: whatever else the checkpoint's processor returns, by its own name, such as `image_sizes`.

        Returns:
          [B, S, V] float32. Rows at padding are zero.

        Raises:
          ValueError: as `make_prompt`.
        """
        mask = np.ones(np.shape(input_ids), bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        (prompt, _), how = self.arguments(self.prompt(input_ids, pixel_values, attention_mask, **inputs), None, 0)
        logits = score(self, prompt, target=how["target"])
        return unpacked(logits, *jax.device_put((mask, np.argsort(pack_order(mask), axis=1))))

    def generate(
        self,
        input_ids: Any,
        pixel_values: Any = None,
        *,
        attention_mask: Any = None,
        max_new_tokens: int,
        carve: plan.Carve = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        **inputs: Any,
    ) -> jax.Array:
        """Generate tokens, with cuts of the visual tokens on the way.

        Args:
          input_ids: [B, S] integers, image placeholders expanded.
          pixel_values: of all rows in order, as the family's processor gives them, or None without images.
          attention_mask: [B, S], non-zero for real tokens; padding may stand on either side.
          max_new_tokens: at least 1.
          carve: None, a keep (a fraction such as 0.222, or a count such as 128: TokenCarve at layer 2), or a schedule
            `((2, "tokencarve", 0.222),)` of (place, compressor, keep) or `models.engine.plan.Cut`, which has more
            options. A place is a decoder layer, "input" or "tower"; a compressor is a registered name or a
            `tokencarve_jax.Compressor`.
          sampling: greedy unless given.
          seed: of sampling, and of compressors that draw.
          **inputs: whatever else the processor returns, by its own name (`image_sizes`), and `relevance` of `prompt`.

        Returns:
          [B, <= max_new_tokens] int32, new tokens only. A row that ended early is filled with the pad token.

        Raises:
          ValueError, TypeError: inputs that do not fit each other, or an impossible schedule.
        """
        chunks = self.stream(
            input_ids,
            pixel_values,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            carve=carve,
            sampling=sampling,
            seed=seed,
            chunk=max_new_tokens,  # one transfer to the host
            **inputs,
        )
        return jax.device_put(np.concatenate(list(chunks), axis=1))  # jnp.asarray compiles something for each shape

    def stream(
        self,
        input_ids: Any,
        pixel_values: Any = None,
        *,
        attention_mask: Any = None,
        max_new_tokens: int,
        carve: plan.Carve = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        chunk: int = 8,
        **inputs: Any,
    ) -> Iterator[np.ndarray]:
        """The tokens of `generate` in chunks, [B, 1], then [B, <= chunk]; the host waits for `chunk` at a time."""
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 1")
        decoding, cuts = decode.DecodeConfig.of(self.config, sampling), self.schedule(carve)
        inputs["per_image"] = plan.has_budgets_per_image(cuts)
        prompt = self.prompt(input_ids, pixel_values, attention_mask, **inputs)
        capacity = round_up(max_new_tokens, decode.DECODE_CAPACITY_BUCKET)
        prefilled = self.prefill(prompt, carve=cuts, seed=seed, decode_capacity=capacity)
        state = decode.begin(prefilled, seed, decode_config=decoding)
        tokens = decode.continued(self, state, max_new_tokens=max_new_tokens, decode_config=decoding, chunk=chunk)
        del prefilled, state  # decoding is given the cache
        yield from tokens

    def prefill(
        self, prompt: Prompt, *, carve: plan.Carve = None, seed: int = 0, decode_capacity: int = 0
    ) -> Prefilled:
        """The first half of `generate`, see `models.engine.prefill.prefill`; `carve` as for `generate`.

        A fraction is of N, the visual tokens of the row (or, with budgets for each image, the image) that has most.
        Where images bring varying numbers (all but LLaVA), N is first rounded up to a multiple of
        `models.engine.prompt.VISUAL_BUCKET`, so that prompts share compiled programs: a few more tokens stay, never
        fewer. Rows with fewer visual tokens keep as many as the richest, or all of theirs.
        """
        given, options = self.arguments(prompt, carve, seed)
        return prefill.prefill(self, *given, decode_capacity=decode_capacity, **options)

    def arguments(self, prompt: Prompt, carve: plan.Carve, seed: int) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """What the functions of `models.engine.prefill` take beside the model: on the device, and static."""
        cuts = self.schedule(carve)
        resolved = plan.resolve(cuts, prompt.visual_slots.shape[1], images=prompt.images)
        given = jax.device_put((without_unused(prompt, cuts), np.uint32(seed)))
        return given, {"plan": resolved, "target": self.target or holding(self.decoder.embed_tokens.embedding[...])}


def _kinds(cls: type[VisionLanguageModel]) -> Iterator[type[VisionLanguageModel]]:
    """The families among this class and its subclasses."""
    if "model_type" in vars(cls):
        yield cls
    for kind in cls.__subclasses__():
        yield from _kinds(kind)
