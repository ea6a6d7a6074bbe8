"""The evidence `relevance` and `relevance_dot`, of each visual token to the question, by CLIP.

Axis letters: B batch, T pieces of a question, N visual tokens, C width of the tower, P width of CLIP's space.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.engine.plan import Plan, Schedule
from models.engine.prompt import Prompt
from models.engine.sharding import place_batch
from models.nn.clip_config import VisionConfig
from models.nn.clip_text import PatchEmbedding

RELEVANCE = ("relevance", "relevance_dot")
FEATURES = ("tower_features", -2)  # read in the tower for them
_HOW = "pass relevance=models.relevance.Relevance.from_pretrained(CLIP)(questions)"


def check_tower(model: Any, tower: VisionConfig) -> None:
    """Refuse a model whose tower is not the one that a CLIP's projections are for.

    Raises:
      ValueError: with everything that differs.
    """
    config = model.config
    if "relevance" not in model.evidence:
        raise ValueError(f"{model.model_type} models do not have relevance: their tower is not CLIP's")
    if len(config.feature_layers) != 1:
        raise ValueError(
            f"relevance needs the features of one layer of the tower, and this model reads {config.feature_layers}"
        )
    own, other = dataclasses.asdict(config.vision), dataclasses.asdict(tower)
    if differing := [name for name in own if own[name] != other[name]]:
        raise ValueError(
            "the vision towers differ: CLIP's has "
            f"{', '.join(f'{name} {other[name]}' for name in differing)}, and the model's "
            f"{', '.join(f'{name} {own[name]}' for name in differing)}; take the CLIP that the model's tower is from"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuestionEmbeddings:
    """Questions as CLIP embeds them, and its embedding of patches. A pytree.

    Attributes:
      texts: [B, T, P], the pieces of each row's question.
      valid: [B, T] bool, False where a row has fewer pieces; at least one is True.
      patches: maps hidden states of the vision tower into the same space.
    """

    texts: Any
    valid: Any
    patches: PatchEmbedding

    def placed(self, mesh: Mesh | None) -> QuestionEmbeddings:
        """The same on a mesh: rows split as batches are, the weights whole."""
        if mesh is None:
            return self
        texts, valid = place_batch((self.texts, self.valid), mesh)
        return QuestionEmbeddings(texts, valid, jax.device_put(self.patches, NamedSharding(mesh, PartitionSpec())))

    def relevance(self, features: jax.Array, valid: jax.Array) -> jax.Array:
        """MINUS the mean over a question's pieces of cos(patch, piece), as in CDPruner's code: [B, N] float32, -1 to 1.

        The minus is the paper's: patch features of this layer point away from the texts that fit.

        Args:
          features: [B, N, C] of the tower's layer that the model reads; zero where a token is not a patch
            (LLaVA-NeXT's newline), which then counts as the row's least relevant one.
          valid: [B, N] bool, False where a row has fewer tokens.
        """
        return self._mean(_unit(self.patches(features)), _unit(self.texts), features, valid)

    def dot(self, features: jax.Array, valid: jax.Array) -> jax.Array:
        """The same with patch and piece as long as CLIP makes them, as in TRIM's code: [B, N] float32."""
        patches, texts = (x.astype(jnp.float32) for x in (self.patches(features), self.texts))
        return self._mean(patches, texts, features, valid)

    def _mean(self, patches: jax.Array, texts: jax.Array, features: jax.Array, valid: jax.Array) -> jax.Array:
        """MINUS the mean over pieces of the products of patches [B, N, P] and texts [B, T, P]."""
        product = jnp.einsum("bnp,btp->bnt", patches, texts, precision=jax.lax.Precision.HIGHEST)
        relevance = -jnp.mean(product, axis=-1, where=self.valid[:, None])
        of_patch = valid & (features != 0).any(-1)
        most = jnp.finfo(relevance.dtype).max
        return jnp.where(of_patch, relevance, relevance.min(-1, keepdims=True, where=of_patch, initial=most))


def attach(questions: QuestionEmbeddings | None, prompt: Prompt, model: Any) -> Prompt:
    """A model's packed batch with its questions, if there are any.

    Raises:
      ValueError: not one question per row; see also `check_tower`.
    """
    if questions is None:
        return prompt
    found, rows = len(questions.texts), len(prompt.input_ids)
    if found != rows:
        raise ValueError(f"relevance is of {found} questions; expected one for each of the {rows} rows")
    check_tower(model, questions.patches.config)
    return dataclasses.replace(prompt, relevance=questions.placed(model.mesh))


def without_unused_questions(prompt: Prompt, schedule: Schedule) -> Prompt:
    """A packed batch without questions that no cut uses, so that it shares the program of batches without them.

    Raises:
      ValueError: a cut needs questions, and the prompt has none.
    """
    for cut in schedule if prompt.relevance is None else ():
        if {*RELEVANCE} & {*cut.compressor.required}:
            raise ValueError(f"cut {cut}: {cut.compressor.name} needs relevance to the question; {_HOW}")
    return prompt if Plan(schedule).asks(*RELEVANCE) else dataclasses.replace(prompt, relevance=None)


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
