"""The other side: the same model in transformers on PyTorch, in a process of its own that works when it is told to.

`python -m experiments.speed.torch_server` reads one JSON object per line and answers each with one. It imports no JAX.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np


def hf_config(config: dict[str, Any]) -> Any:
    """Their config of our `LlavaConfig` (as a dictionary)."""
    from transformers import CLIPVisionConfig, LlamaConfig
    from transformers import LlavaConfig as HfLlavaConfig

    vision, text, layers = config["vision"], config["text"], config["feature_layers"]
    return HfLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_hidden_layers=vision["num_layers"],
            num_attention_heads=vision["num_heads"],
            num_channels=vision["num_channels"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_act=vision["activation"],
            layer_norm_eps=vision["layer_norm_eps"],
        ),
        text_config=LlamaConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["num_layers"],
            num_attention_heads=text["num_heads"],
            num_key_value_heads=text["num_kv_heads"],
            head_dim=text["head_dim"],
            hidden_act=text["activation"],
            rms_norm_eps=text["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": text["rope_theta"]},
            attention_bias=text["attention_bias"],
            mlp_bias=text["mlp_bias"],
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=config["pad_token_id"],
        ),
        image_token_index=config["image_token_id"],
        vision_feature_layer=layers[0] if len(layers) == 1 else list(layers),
        vision_feature_select_strategy="full" if config["keep_class_token"] else "default",
        projector_hidden_act=config["projector_activation"],
        multimodal_projector_bias=config["projector_bias"],
        tie_word_embeddings=text["tie_word_embeddings"],
    )


class Worker:
    """Holds the model; each public method answers one kind of line."""

    def start(self, *, config: dict[str, Any], dtype: str, threads: int) -> dict[str, Any]:
        """Build the model with random weights, on the GPU where there is one."""
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, dtype)
        with torch.device(self.device):
            self.model = transformers.LlavaForConditionalGeneration._from_config(
                hf_config(config), dtype=self.dtype, attn_implementation="sdpa"
            ).eval()
        self.image_token, self.vocab = config["image_token_id"], config["text"]["vocab_size"]
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "attention": "sdpa",
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
        }

    def inputs(self, *, path: str) -> dict[str, Any]:
        """Take the prompt of an .npz file, and forget the peak of memory so far."""
        with np.load(path) as arrays:
            self.ids = self.torch.tensor(arrays["input_ids"].astype(np.int64), device=self.device)
            self.pixels = self.torch.tensor(arrays["pixel_values"], device=self.device, dtype=self.dtype)
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()
        return {}

    def _now(self) -> float:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def prefill(self) -> dict[str, Any]:
        """One prefill with a fresh cache, logits of the last token only."""
        start = self._now()
        self._prefill()
        return {"seconds": self._now() - start}

    def _prefill(self) -> Any:
        with self.torch.inference_mode():
            return self.model(input_ids=self.ids, pixel_values=self.pixels, use_cache=True, logits_to_keep=1)

    def generate(self) -> dict[str, Any]:
        """What a user calls for one new token, greedily."""
        start = self._now()
        self.model.generate(
            input_ids=self.ids,
            pixel_values=self.pixels,
            attention_mask=self.torch.ones_like(self.ids),
            max_new_tokens=1,
            do_sample=False,
        )
        return {"seconds": self._now() - start}

    def decode(self, *, steps: int) -> dict[str, Any]:
        """Greedy decoding after an untimed prefill: the bare loop around `forward`, without the work of `generate`."""
        out = self._prefill()
        with self.torch.inference_mode():
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            start = self._now()
            for _ in range(steps):
                out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
            return {"seconds": self._now() - start}

    def memory(self) -> dict[str, Any]:
        """Peak bytes since `inputs` on the GPU; of the whole process on the CPU."""
        if self.device == "cuda":
            return {"peak": self.torch.cuda.max_memory_allocated()}
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    """Answer lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except RuntimeError as error:  # torch's out-of-memory error is one
            memory = "out of memory" in str(error) or "not enough memory" in str(error)
            answer = {"error": "out of memory" if memory else " ".join(str(error).split())}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
