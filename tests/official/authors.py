"""What it takes to run functions out of the authors' files: where they are, a loader, a decoder as they expect it."""

import __future__

import ast
import math
import os
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.official import inputs

LLAVA = "llava/model/llava_arch.py"
SOURCES = {
    "apet": ("ApET", "MaQianKun0/ApET", LLAVA),
    "cdpruner": ("CDPruner", "Theia-4869/CDPruner", LLAVA),
    "dart": (
        "DART",
        "xqy1111111/DART (a copy of ZichenWen1/DART)",
        "llava/model/language_model/modeling_llama_self.py",
    ),
    "divprune": ("divprune", "vbdi/divprune", f"LLaVA/{LLAVA}"),
    "everest": ("EVEREST", "sunilhoho/EVEREST", "modeling_finetune.py"),
    "evs": ("vllm", "vllm-project/vllm", "vllm/multimodal/video_prune/evs.py"),
    "fastervlm": ("FasterVLM", "Theia-4869/FasterVLM", LLAVA),
    "fastv": (
        "FastV",
        "pkunlp-icler/FastV",
        "src/FastV/llava-hf/transformers/src/transformers/models/llama/modeling_llama.py",
    ),
    "hiprune": ("HiPrune", "Danielement321/HiPrune", f"LLaVA/{LLAVA}"),
    "holov": ("HoloV", "obananas/HoloV", "llava/model/utils.py"),
    "mmtok": ("MMTok", "Ironieser/MMTok", "mmtok/core/semantic_selector.py"),
    "otprune": ("OTPrune", "xiwenc1/OTPrune", f"LLaVA/{LLAVA}"),
    "prumerge": ("LLaVA-PruMerge", "42Shawn/LLaVA-PruMerge", "llava/model/multimodal_encoder/clip_encoder.py"),
    "prunesid": ("PruneSID", "ZhengyaoFang/PruneSID", "prunesid/prunesid_llava/clip_encoder.py"),
    "pyramiddrop": ("PyramidDrop", "Cooperx521/PyramidDrop", "llava/model/modeling_llama_pdrop.py"),
    "scope": ("SCOPE", "kinredon/SCOPE", "scope/clip_encoder.py"),
    "sparsevlm": ("SparseVLMs", "Gumpest/SparseVLMs", "llava/model/language_model/modelling_sparse_llama.py"),
    "token-dynamics": ("VQToken", "Hai-chao-Zhang/VQToken", "VQToken/cluster.py"),
    "tokencarve-svd": ("TokenCarve", "ShawnTan86/TokenCarve", "TokenCarve/modeling_llama.py"),
    "tome": ("ToMe", "facebookresearch/ToMe", "tome/merge.py"),
    "trim": ("TRIM", "FreedomIntelligence/TRIM", "llava/model/multimodal_encoder/clip_encoder.py"),
    "v2drop": ("V2Drop", "xuyang-liu16/V2Drop", "llava/model/language_model/V2Drop.py"),
    "vidcom2": ("VidCom2", "xuyang-liu16/VidCom2", "token_compressor/vidcom2/vidcom2.py"),
    "visionzip": ("VisionZip", "dvlab-research/VisionZip", "visionzip/clip_encoder.py"),
    "vispruner": ("VisPruner", "Theia-4869/VisPruner", LLAVA),
}
SOURCES["sparsevlm-plus"] = SOURCES["sparsevlm"]


def functions(file: Path, *names: str, **given: Any) -> SimpleNamespace:
    """Functions and methods of a file by their names, or `Class.name`, undecorated."""
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math, "np": np, "os": os, "typing": typing}
    space |= vars(typing) | given
    found = {}
    for outer in ast.walk(ast.parse(file.read_text())):
        for node in getattr(outer, "body", []) if isinstance(outer, (ast.Module, ast.ClassDef)) else []:
            known = (getattr(node, "name", ""), f"{getattr(outer, 'name', '')}.{getattr(node, 'name', '')}")
            if isinstance(node, ast.FunctionDef) and (name := next((n for n in names if n in known), None)):
                node.decorator_list = []
                code = compile(ast.Module([node], []), str(file), "exec", __future__.annotations.compiler_flag)
                exec(code, space)
                found[name.split(".")[-1]] = space[node.name]
    assert len(found) == len(names), (file, names, list(found))
    return SimpleNamespace(**found)


class Returning(SimpleNamespace):
    """Something that returns `out` whatever it is called with."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.out


class Seeing(SimpleNamespace):
    """A decoder layer that notes the positions it gets, and gives what it is told to."""

    def __init__(self, seen: list[torch.Tensor], out: torch.Tensor, **more: Any):
        super().__init__(seen=seen, out=out, **more)

    def __call__(self, _: Any, *, position_ids: torch.Tensor, **__: Any) -> tuple[torch.Tensor]:
        self.seen.append(position_ids)
        return (self.out,)


class Layer:
    """A decoder layer of transformers with the signature, and the order of results, of older versions."""

    def __init__(self, model: Any, index: int, *, order: str):
        self.model, self.layer, self.order, self.seen = model, model.layers[index], order, []
        heads = inputs.DECODER["num_attention_heads"]
        self.mlp, self.input_layernorm = self.layer.mlp, self.layer.input_layernorm
        self.self_attn = SimpleNamespace(
            layer_idx=index, num_heads=heads, num_key_value_heads=heads, head_dim=model.config.hidden_size // heads
        )
        self.self_attn.rotary_emb = self.angles
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self.self_attn, name, getattr(self.layer.self_attn, name))

    def angles(self, values: torch.Tensor, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [seq_len, d]."""
        return tuple(part[0] for part in self.model.rotary_emb(values, torch.arange(seq_len)[None]))

    def __call__(self, hidden_states: torch.Tensor, *, position_ids: torch.Tensor, **_: Any) -> tuple[Any, ...]:
        length = hidden_states.shape[1]
        self.seen.append((hidden_states.clone(), position_ids.clone()))
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        states, layer = self.layer.input_layernorm(hidden_states), self.layer
        at = self.model.rotary_emb(hidden_states, position_ids)
        added, attention = layer.self_attn(states, position_embeddings=at, attention_mask=mask)
        hidden = hidden_states + added
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return {"attention": (hidden, attention, None), "sparse": (hidden, None, attention)}[self.order]


def rotate(query: Any, key: Any, cos: Any, sin: Any, position_ids: Any) -> tuple[Any, Any]:
    """`apply_rotary_pos_emb` of older versions, whose tables have a row for each position."""
    return apply_rotary_pos_emb(query, key, cos[position_ids], sin[position_ids])


def causal(mask: Any, shape: tuple[int, int], embeds: Any, past_key_values_length: int) -> torch.Tensor:
    """`_prepare_4d_causal_attention_mask` without padding."""
    return torch.full((shape[1], shape[1]), torch.finfo(embeds.dtype).min).triu(1)[None, None]


class Event:
    """A CUDA event on a machine that has none."""

    def __init__(self, **_: Any):
        self.record = lambda: None
        self.elapsed_time = lambda other: 0.0


def decoder(model: Any, order: str, **more: Any) -> SimpleNamespace:
    """What the authors' forward functions ask of `self`."""
    config = SimpleNamespace(output_attentions=False, output_hidden_states=False, use_cache=False, use_return_dict=True)
    here = {"config": config, "gradient_checkpointing": False, "training": False, "norm": model.norm, "device": "cpu"}
    here |= {"_use_flash_attention_2": False, "_use_sdpa": False, "all_FLOPs": 0, "init_token_total_shape": 0}
    here |= {"generate_process_count": 0, "total_cuda_time": 0, "num_forward": 0, "num_token_pool": 0, "num_layers": 1}
    here["layers"] = [Layer(model, index, order=order) for index in range(len(model.layers))]
    here["_update_causal_mask"] = lambda *_: None
    return SimpleNamespace(**{**here, **more})


def sparsevlm_space(folder: Path, keep: int, version: str) -> dict[str, Any]:
    """What SparseVLM's forward function looks up, for a budget and a version of its code."""
    score = {"VERSION": version, "V2_0": version == "2_0", "RETAIN_TOKN": keep}
    tree = ast.parse((folder / "score.py").read_text())
    tables = [node for node in tree.body if isinstance(node, ast.Assign) and "sparse_token" in ast.unparse(node)]
    tables += [node for node in tree.body if isinstance(node, ast.Assign) and "layer_dict" in ast.unparse(node)]
    exec(compile(ast.Module(tables, []), "score.py", "exec"), score)
    score |= vars(functions(folder / "score.py", "attn_postprocess_topk", "select_attn_head_by_sum", **score))
    score |= vars(functions(folder / "utils.py", "batch_index_select", "index_points"))
    rearranged = SimpleNamespace(rearrange=lambda x, how: x[:, :, None] if how.endswith("b l () r") else x[:, None])
    merging = functions(folder / "utils.py", "cluster_and_merge", ein=rearranged, index_points=score["index_points"])
    given = score | vars(merging) | {"Cache": tuple, "DynamicCache": None, "apply_rotary_pos_emb": rotate}
    given |= {"BaseModelOutputWithPast": SimpleNamespace, "_prepare_4d_causal_attention_mask": causal}
    given |= {"loggerinfo": mock.Mock(), "prefix": ""}
    return given


def kept(indices: Any) -> list[int]:
    """Ascending."""
    return sorted(int(index) for index in indices)


def from_mask(mask: torch.Tensor) -> list[list[int]]:
    """[B, N] bool."""
    return [kept(torch.where(row)[0]) for row in mask]


def compact(rows: torch.Tensor) -> list[list[float]]:
    """Of rows [B, K, D] the first column in the first two images, to six digits, sorted."""
    return [sorted(float(f"{number:.6g}") for number in one) for one in rows[:2, :, 0].double().tolist()]
