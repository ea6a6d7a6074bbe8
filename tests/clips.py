"""Tiny random CLIP checkpoints, made by transformers, with a tokenizer of CLIP's own kind that knows letters."""

import string
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.checkpoints import VISION, build, randomise

_LETTERS = [*string.ascii_lowercase, "?", "."]
VOCABULARY = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
END = len(VOCABULARY) - 1
LEGACY = 2  # what config.json files of before say of the token that ends texts
CONTEXT = 11
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 20,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": CONTEXT,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 3e-3,
    "bos_token_id": END - 1,
    "eos_token_id": END,
    "pad_token_id": END,
}


def make_clip(folder: Path, *, seed: int = 0, vision: dict[str, Any] = VISION, **text: Any) -> transformers.CLIPModel:
    """Build a model and save it, and its tokenizer, as a checkpoint; `text` overrides the constants above."""
    config = transformers.CLIPConfig(text_config=TEXT | text, vision_config=dict(vision), projection_dim=14)
    # What files have: the outer width alone counts.
    config.text_config.projection_dim = config.vision_config.projection_dim = 14
    model = transformers.CLIPModel(config).eval()
    for part in (model.text_model, model.vision_model, model.text_projection, model.visual_projection):
        randomise(part, seed)
        seed += 1
    model.save_pretrained(folder)
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    transformers.CLIPTokenizer(vocab=ids, merges=[]).save_pretrained(folder)
    return model


def make_llava(folder: Path, clip: transformers.CLIPModel, **llava: Any) -> transformers.LlavaForConditionalGeneration:
    """A LLaVA whose tower is that CLIP's, saved as a checkpoint."""
    model = build(**llava)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.save_pretrained(folder)
    return model


def relevance(
    clip: transformers.CLIPModel, pixels: torch.Tensor, pieces: torch.Tensor, mask: torch.Tensor, *, cosine: bool = True
) -> torch.Tensor:
    """Of every patch of images [I, 3, H, W] to one question in pieces [T, S], as CDPruner's code has it, or TRIM's."""
    with torch.no_grad():
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        patches = clip.visual_projection(clip.vision_model.post_layernorm(states))
        texts = clip.get_text_features(pieces, attention_mask=mask).pooler_output
    if cosine:
        patches, texts = (x / x.norm(dim=-1, keepdim=True) for x in (patches, texts))
    return (-(patches @ texts.T)).mean(-1)
