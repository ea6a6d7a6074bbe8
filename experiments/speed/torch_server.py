"""The same model in transformers on PyTorch, in a process of its own that works when it is asked to.

`python -m experiments.speed.torch_server` reads pickled pairs, the name of a method of `Server` and its arguments, and
answers each with a pickled pair of result and error. It imports no JAX.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import time
from typing import Any

import numpy as np

_SAME = ("hidden_size", "intermediate_size")
_VISION = (*_SAME, "num_channels", "image_size", "patch_size", "layer_norm_eps")
_TEXT = (*_SAME, "vocab_size", "head_dim", "rms_norm_eps", "attention_bias", "mlp_bias")
_RENAMED = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "hidden_act": "activation"}


def hf_config(config: dict[str, Any]) -> Any:
    """The transformers configuration of a `LlavaConfig` (as a dictionary)."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision, text, layers = config["vision"], config["text"], config["feature_layers"]

    def common(part: dict[str, Any], same: tuple[str, ...]) -> dict[str, Any]:
        return {name: part[name] for name in same} | {name: part[own] for name, own in _RENAMED.items()}

    return LlavaConfig(
        vision_config=CLIPVisionConfig(**common(vision, _VISION)),
        text_config=LlamaConfig(
            **common(text, _TEXT),
            num_key_value_heads=text["num_kv_heads"],
            rope_parameters={"rope_type": "default", "rope_theta": text["rope_theta"]},
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


class Server:
    """Holds the model; each public method answers one kind of request. What is timed gives seconds."""

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
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "attention": "sdpa",
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
        }

    def inputs(self, *, ids: np.ndarray, pixels: np.ndarray) -> None:
        """Take a prompt, and forget the peak of memory so far."""
        self.ids = self.torch.tensor(ids.astype(np.int64), device=self.device)
        self.pixels = self.torch.tensor(pixels, device=self.device, dtype=self.dtype)
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def _now(self) -> float:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def _prefill(self) -> Any:
        with self.torch.inference_mode():
            return self.model(input_ids=self.ids, pixel_values=self.pixels, use_cache=True, logits_to_keep=1)

    def prefill(self) -> float:
        """One prefill with a fresh cache, logits of the last token only."""
        start = self._now()
        self._prefill()
        return self._now() - start

    def generate(self) -> float:
        """What a user calls for one new token, greedily."""
        start = self._now()
        self.model.generate(
            input_ids=self.ids,
            pixel_values=self.pixels,
            attention_mask=self.torch.ones_like(self.ids),
            max_new_tokens=1,
            do_sample=False,
        )
        return self._now() - start

    def decode(self, *, steps: int) -> float:
        """Greedy decoding after an untimed prefill: the bare loop around `forward`, without the work of `generate`."""
        out = self._prefill()
        with self.torch.inference_mode():
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            start = self._now()
            for _ in range(steps):
                out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
            return self._now() - start

    def peak_memory(self) -> int:
        """Peak bytes since `inputs` on the GPU; of the whole process on the CPU."""
        if self.device == "cuda":
            return self.torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    server = Server()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: tuple[Any, str | None] = getattr(server, name)(**arguments), None
        except RuntimeError as error:  # torch's out-of-memory error is one
            memory = "out of memory" in str(error) or "not enough memory" in str(error)
            answer = None, "out of memory" if memory else " ".join(str(error).split())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
