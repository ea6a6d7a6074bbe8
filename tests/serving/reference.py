"""What transformers answers with the same cut: its own rows, evidence read off its own tower in PyTorch."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from PIL import Image

from tests.serving.checkpoints import IMAGE
from tokencarve_jax import COMPRESSORS, Tokens

NEW = 16


class Answer(NamedTuple):
    """Tokens of the prompt, greedy tokens and their log-probabilities."""

    length: int
    tokens: list[int]
    logs: list[float]


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Smooth random ones, by width and height."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(small, sizes, strict=True)]


class Reference:
    """A checkpoint in transformers, float32, and what it sees in images."""

    def __init__(self, folder: Path, images: list[Image.Image]):
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = model.eval()
        self.rows: list[torch.Tensor] = []
        self.evidence: list[dict[Any, torch.Tensor]] = []
        self.images = images
        self._look(images)

    @torch.no_grad()
    def _look(self, images: list[Image.Image]) -> None:
        """Rows behind the projector of each image, and what a method may ask about them."""
        core, seen = self.model.model, dict[Any, torch.Tensor]()
        layers = core.vision_tower.encoder.layers
        core.multi_modal_projector.register_forward_pre_hook(lambda _, given: seen.update(features=given[0]))
        for block, layer in enumerate(layers):
            for name in ("q_proj", "k_proj"):
                hook = functools.partial(lambda what, _, given, out: seen.update({what: out}), (block, name))
                getattr(layer.self_attn, name).register_forward_hook(hook)
        for image in images:
            inputs = self.processor.image_processor([image], return_tensors="pt")
            (rows,) = core.get_image_features(**inputs).pooler_output
            self.rows.append(rows)
            told = _evidence(seen, layers[0].self_attn.num_heads, len(layers))
            sizes = inputs.get("image_sizes")
            self.evidence.append({name: self._placed(array, sizes) for name, array in told.items()})

    def _placed(self, array: torch.Tensor, sizes: Any) -> torch.Tensor:
        """[T, P, ...] -> [N, ...], as the rows of an image were placed; zero for a newline."""
        if sizes is None:
            return array[0]
        flat = array.flatten(2) if array.ndim > 2 else array[..., None]
        zero = torch.zeros(flat.shape[-1])
        ((placed,), _) = self.model.model.pack_image_features([flat], sizes, "default", image_newline=zero)
        return placed.reshape(-1, *array.shape[2:])

    def cut(self, method: str, keep: int, image: int) -> torch.Tensor:
        """[K, D] of an image; all where there are no more."""
        rows, compressor = self.rows[image], COMPRESSORS[method]
        told: dict[str, Any] = {}
        for name in compressor.required:
            if name == "key":
                told[name] = jax.random.fold_in(jax.random.key(0), 0)
            elif name == "projector":
                told[name] = jax.tree_util.Partial(self._project)
            else:
                layer = compressor.tower_layer if (name, compressor.tower_layer) in self.evidence[image] else None
                told[name] = jnp.asarray(self.evidence[image][name, layer].numpy())
        grid = (1, 24, 24) if compressor.reads_grid and len(rows) == 576 else None
        left = compressor(Tokens.of(jnp.asarray(rows.numpy()), grid=grid), keep=min(keep, len(rows)), **told)
        return torch.from_numpy(np.array(left.tokens.values))

    def _project(self, features: jax.Array) -> jax.Array:
        """transformers' projector as a function of JAX arrays."""
        projector = self.model.model.multi_modal_projector
        weights = {name: jnp.asarray(weight.detach().numpy()) for name, weight in projector.named_parameters()}
        hidden = jnp.dot(features, weights["linear_1.weight"].T) + weights["linear_1.bias"]
        hidden = hidden * (1 + jax.scipy.special.erf(hidden / 2**0.5)) / 2
        return jnp.dot(hidden, weights["linear_2.weight"].T) + weights["linear_2.bias"]

    @torch.no_grad()
    def answer(self, prompt: str, *rows: torch.Tensor) -> Answer:
        """A greedy answer; rows stand where each <image> does."""
        table, images = self.model.get_input_embeddings(), iter(rows)
        ids = self.processor.tokenizer(prompt)["input_ids"]
        embeds = torch.cat([next(images) if token == IMAGE else table(torch.tensor([token])) for token in ids])[None]
        length, tokens, logs = embeds.shape[1], [], []
        for _ in range(NEW):
            logits = self.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[0, -1]
            tokens.append(int(logits.argmax()))
            logs.append(float(logits.log_softmax(-1).max()))
            embeds = torch.cat([embeds, table(torch.tensor([[tokens[-1]]]))], 1)
        return Answer(length, tokens, logs)


def _evidence(seen: dict[Any, torch.Tensor], heads: int, depth: int) -> dict[tuple[str, int | None], torch.Tensor]:
    """By name and layer, [T, P, ...], the class token left out."""

    def of_block(block: int) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = (seen[block, name].unflatten(-1, (heads, -1)) for name in ("q_proj", "k_proj"))
        return query, key

    told: dict[tuple[str, int | None], torch.Tensor] = {("tower_features", None): seen["features"]}
    for layer in (-2, -1):
        query, key = of_block(depth + layer)
        told["class_attention", layer] = _attention(query[:, :1], key)[:, 1:]
        told["global_attention", layer] = _attention(query, key)[:, 1:]
        told["tower_keys", layer] = key.mean(2)[:, 1:]
    told["middle_attention", None] = _attention(*of_block(depth * 9 // 24 - 1))[:, 1:]  # HiPrune's: the 9th of 24
    return told


def _attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[n, S] softmax attention of queries [n, Q, H, d] to keys [n, S, H, d], mean over heads and queries."""
    logits = torch.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
    return logits.softmax(-1).mean((1, 2))
