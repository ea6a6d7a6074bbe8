"""Run the authors' own functions, unmodified, on the inputs of `tests.official.inputs`, and write what they keep.

`python -m tests.official.record FOLDER [METHOD...]`, with FOLDER/NAME a checkout of each repository in `SOURCES`, and
its commit in FOLDER/NAME/COMMIT; needs torch and transformers. Functions are taken out of their files by name, since
the files import other versions of transformers than there are; whatever else a function looks up is given here.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.official import inputs
from tests.official.authors import (
    SOURCES,
    Event,
    Returning,
    Seeing,
    causal,
    compact,
    decoder,
    from_mask,
    functions,
    kept,
    rotate,
    sparsevlm_space,
)
from tests.official.cases import ARRAYS, BUDGETS, FIXTURES, SPARSE, SPARSE_KEPT
from tests.official.on_arrays import OnArrays


class Recorder(OnArrays):
    """All models' outputs for the inputs, computed once, and one method for each of the authors'."""

    def __init__(self, checkouts: Path, checkpoint: Path):
        super().__init__(checkouts)
        model = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager")
        self.model = model.eval().model
        self.text = self.model.language_model
        self.pixels = torch.tensor(inputs.pixels())
        self.tower = self.model.vision_tower(self.pixels, output_hidden_states=True, output_attentions=True)
        self.features = self.tower.hidden_states[-2][:, 1:]
        self.attention = self.tower.attentions[-2][:, :, 0, 1:]
        self.tokens = self.model.multi_modal_projector(self.features)
        self.rows = []
        for row in range(inputs.IMAGES):
            ids = torch.tensor(inputs.prompt(row))
            embeds = self.text.embed_tokens(ids).clone()
            embeds[ids == inputs.PLACEHOLDER] = self.tokens[row]
            self.rows.append(embeds[None])

    def fastervlm(self, keep: int) -> list[list[int]]:
        run = functions(self.file("fastervlm"), "encode_images").encode_images
        return from_mask(run(self.llava(self.features, self.attention, get_visual_token_num=lambda: keep), None)[1])

    def vispruner(self, keep: int) -> list[list[int]]:
        run = functions(self.file("vispruner"), "encode_images").encode_images
        options = {"get_visual_token_num": lambda: keep, "get_important_ratio": lambda: 0.5, "projector": nn.Identity()}
        # In float64: similarities that differ by rounding change all later rounds
        seen = [(case["values"].double(), case["attention"][:, None].double()) for case in self.arrays()]
        return [from_mask(run(self.llava(*each, **options), None)[1])[0] for each in seen]

    def hiprune(self, keep: int) -> list[list[int]]:
        run = functions(self.file("hiprune"), "encode_images").encode_images
        settings = {"HIPRUNE_ALPHA": "0.1", "HIPRUNE_OBJECT_LAYER": "9"}
        found = []
        for row in range(inputs.IMAGES):  # the budget is divided by the images of a batch
            one = slice(row, row + 1)
            maps = tuple(layer[one].clone() for layer in self.tower.attentions)
            llava = self.llava(self.features[one], maps, config=SimpleNamespace(mm_vision_select_layer=-2))
            with mock.patch.dict(os.environ, settings | {"HIPRUNE_RETENTION": str(keep)}):
                found += from_mask(run(llava, None)[1])
        return found

    def cdpruner(self, keep: int) -> list[list[int]]:
        run, clip = functions(self.file("cdpruner"), "encode_images").encode_images, inputs.clip()
        embeds = self.model.vision_tower.post_layernorm(self.features) @ torch.tensor(clip["projection"]).T
        options = {"visual_token_num": keep}
        seen = [(self.features[[i]], embeds[[i]], torch.tensor(clip["texts"][i])) for i in range(inputs.IMAGES)]
        if keep in ARRAYS["cdpruner"]:
            options["projector"] = nn.Identity()
            seen = [(case["values"], case["keys"], case["query"]) for case in self.arrays(alike=True)]
        return [from_mask(run(self.llava(*each, **options), None, texts="")[1])[0] for each in seen]

    def divprune(self, keep: int) -> list[list[int]]:
        run = functions(self.file("divprune"), "DivPrune", "pairwise_cosine_similarity")
        llava = SimpleNamespace(pairwise_cosine_similarity=lambda x: run.pairwise_cosine_similarity(None, x))
        share = keep / inputs.PATCHES
        on_arrays = keep in ARRAYS["divprune"]
        tokens = [case["values"][0] for case in self.arrays()] if on_arrays else self.tokens
        return [kept(run.DivPrune(llava, x, inputs.PATCHES, threshold_ratio=share)[0]) for x in tokens]

    def otprune(self, keep: int) -> list[list[int]]:
        select = functions(self.file("otprune"), "greedy_select").greedy_select
        run = functions(self.file("otprune"), "OTPrune", greedy_select=select).OTPrune
        share = keep / inputs.PATCHES
        return [kept(run(None, x, inputs.PATCHES, None, threshold_ratio=share)[0]) for x in self.tokens]

    def scope(self, keep: int) -> list[list[int]]:
        run = functions(self.file("scope"), "SCOPE").SCOPE
        return [kept(row) for row in run(self.features, keep, self.attention.sum(1))[0]]

    def mmtok(self, keep: int) -> list[list[int]]:
        names = ("greedy_merged_jit_kernel", "_l2_normalize", "mm_coverage_selection")
        run = functions(self.file("mmtok"), *names)
        selector = SimpleNamespace(target_vision_tokens=keep, alpha=0.5, _l2_normalize=run._l2_normalize)
        found = []
        for row, embeds in enumerate(self.rows):
            question = embeds[0, inputs.SYSTEM + inputs.PATCHES :]
            told = (question, self.tokens[row], self.features[row], 0.02, 0.2)
            found.append(kept(run.mm_coverage_selection(selector, *told)[0]))
        return found

    def holov(self, keep: int) -> list[list[int]]:
        run = functions(self.file("holov"), "HoloV").HoloV
        left = run(self.tokens, self.attention.mean(1).float(), num_patches=16, new_image_token_num=keep)
        return [
            kept((row[:, None] == mine).all(-1).float().argmax(0)) for row, mine in zip(self.tokens, left, strict=True)
        ]

    def visionzip(self, keep: int) -> dict[str, Any]:
        run = functions(self.file("visionzip"), "forward").forward
        heads = inputs.TOWER["num_attention_heads"]
        layer = self.model.vision_tower.encoder.layers[-2]
        keys = layer.self_attn.k_proj(layer.layer_norm1(self.tower.hidden_states[-3]))
        metric = keys.reshape(*keys.shape[:2], heads, -1).mean(2)
        metrics = SimpleNamespace(encoder=SimpleNamespace(layers=[SimpleNamespace(metric=metric), None]))
        contextual = keep * 10 // 64
        info = {"dominant": keep - contextual, "contextual": contextual}
        tower = Returning(out=self.tower, vision_model=metrics, _info=info)
        left = run(SimpleNamespace(vision_tower=tower, device="cpu", dtype=torch.float32), self.pixels)[0]
        return {"rows": left[:, -contextual:]}

    def trim(self, keep: int) -> dict[str, Any]:
        run, clip = functions(self.file("trim"), "CLIPVisionTower.token_reduction").token_reduction, inputs.clip()
        vision = SimpleNamespace(post_layernorm=self.model.vision_tower.post_layernorm)
        tower = SimpleNamespace(vision_model=vision, visual_projection=lambda x: x @ torch.tensor(clip["projection"]).T)
        here = SimpleNamespace(token_reduce_func=f"TRIM:{(keep - 0.5) / inputs.PATCHES}", vision_tower=tower)
        text = torch.tensor(clip["texts"]).mean(1)  # one there; the mean of products is that with the mean
        with mock.patch.object(torch, "float16", torch.float32):  # which it rounds to
            left, counts = run(here, self.features, None, text)
        assert set(counts) == {keep}
        same = (self.features[:, :, None] == left[:, None, : keep - 1]).all(-1).any(-1)
        return {"kept": from_mask(same), "rows": left[:, keep - 1 : keep]}

    def fastv(self, keep: int) -> list[list[int]]:
        given = {"StaticCache": tuple, "DynamicCache": None, "BaseModelOutputWithPast": SimpleNamespace}
        run, found = functions(self.file("fastv"), "LlamaModel.fastv_forward", **given).fastv_forward, []
        options = {"fastv_k": 2, "fastv_r": 1 - keep / inputs.PATCHES, "image_token_start_index": inputs.SYSTEM}
        options["image_token_length"] = inputs.PATCHES
        for embeds in self.rows:
            here = decoder(self.text, "attention")
            run(here, inputs_embeds=embeds, fastv_config=options)
            found.append(self.visual(here.layers[2].seen[0][1][0]))
        return found

    def v2drop(self, keep: int) -> list[list[int]]:
        given = {"_prepare_4d_causal_attention_mask": causal, "BaseModelOutputWithPast": SimpleNamespace}
        run, found = functions(self.file("v2drop"), "forward", **given).forward, []
        for case in (inputs.arrays(image, width=48) for image in range(inputs.IMAGES)):
            # 35 tokens stand in front there. Layer 2 gets the keys and gives the values.
            keys, values = (F.pad(torch.tensor(case[name])[None], (0, 0, 35, 9)) for name in ("keys", "values"))
            here, seen = decoder(self.text, "attention"), []
            outputs = (keys, keys, values, values)
            here.layers = [
                Seeing(seen, out, self_attn=SimpleNamespace(layer_idx=layer)) for layer, out in enumerate(outputs)
            ]
            here.norm = nn.Identity()
            run(here, inputs_embeds=keys)
            found.append([place - 35 for place in seen[3][0].tolist() if 35 <= place < 35 + inputs.PATCHES])
        assert {len(row) for row in found} == {keep}  # half, at the first of its layers
        return found

    def visual(self, positions: torch.Tensor) -> list[int]:
        """Of kept places in the sequence those of visual tokens, counted from the first."""
        inside = (positions >= inputs.SYSTEM) & (positions < inputs.SYSTEM + inputs.PATCHES)
        return kept(positions[inside] - inputs.SYSTEM)

    def pyramiddrop(self, keep: int) -> list[list[int]]:
        given = {"IGNORE_INDEX": -100, "_prepare_4d_causal_attention_mask": causal, "apply_rotary_pos_emb": rotate}
        run, found = functions(self.file("pyramiddrop"), "pdrop_rank_drop", **given).pdrop_rank_drop, []
        for row, embeds in enumerate(self.rows):
            here = decoder(self.text, "attention", image_tokens=[inputs.PATCHES], image_token_posi=[inputs.SYSTEM])
            here.image_token_ratio_list = [1.0, (keep + 0.5) / inputs.PATCHES]
            here.prompt_len = [inputs.SYSTEM + inputs.QUESTIONS[row]]
            hidden, at = embeds, torch.arange(embeds.shape[1])[None]
            for layer in here.layers[:8]:
                hidden = layer(hidden, position_ids=at)[0]
            left = run(here, 0, 8, hidden, None, None, None)[2]
            found.append(self.visual((hidden[0][:, None] == left[0]).all(-1).float().argmax(0)))
        return found

    def dart(self, keep: int) -> list[list[int]]:
        run, found = functions(self.file("dart"), "get_retained_image_token").get_retained_image_token, []
        options = {"K": 2, "image_token_start_index": inputs.SYSTEM, "image_token_length": inputs.PATCHES}
        options |= {"max_num_trunction": keep - 4, "pivot_image_token": 4, "pivot_text_token": 4, "reduction_ratio": 0}
        for embeds in self.rows:
            layers, at = decoder(self.text, "attention").layers, torch.arange(embeds.shape[1])[None]
            hidden = layers[0](embeds, position_ids=at)[0]
            states = self.text.layers[1].input_layernorm(hidden)
            key = self.text.layers[1].self_attn.k_proj(states)
            key = key.reshape(1, key.shape[1], inputs.DECODER["num_attention_heads"], -1).transpose(1, 2)
            cos, sin = self.text.rotary_emb(hidden, at)
            key = apply_rotary_pos_emb(key, key, cos, sin)[1]
            after = self.text.norm(layers[1](hidden, position_ids=at)[0])
            config = SimpleNamespace(DART_config=options, text_length=None)
            found.append(self.visual(run(None, config, after, key)))
        return found

    def sparse(self, keep: int, version: str) -> list[dict[str, Any]]:
        """Their whole run: what is left of the image in front of each layer behind a cut."""
        given = sparsevlm_space(self.file("sparsevlm").parent, keep, version)
        run = functions(self.file("sparsevlm"), "LlamaDynamicvitModel.forward", **given).forward
        found = []
        for embeds in self.rows:
            here = decoder(self.text, "sparse", pruning_loc=[2, 6, 15])
            with mock.patch.multiple(torch.cuda, Event=Event, synchronize=lambda: None):
                run(here, inputs_embeds=embeds, image_shape=inputs.PATCHES, pre_prompt_length_list=[inputs.SYSTEM])
            text = embeds.shape[1] - inputs.PATCHES - inputs.SYSTEM
            cuts = []
            for layer in (3, 7, 16):
                states, positions = here.layers[layer].seen[0]
                cuts.append((states[0, inputs.SYSTEM : states.shape[1] - text], positions[0]))
            before = here.layers[2](*[here.layers[2].seen[0][0]], position_ids=here.layers[2].seen[0][1])[0][0]
            found.append({"cuts": cuts, "before": before[inputs.SYSTEM :][: inputs.PATCHES], "text": text})
        return found

    def sparsevlm(self, keep: int) -> dict[str, Any]:
        budget = next(budget for budget, counts in SPARSE.items() if counts[0] == keep)
        runs = self.sparse(budget, "1_0")
        equal = [(one["before"][:, None] == one["cuts"][0][0]).all(-1) for one in runs]
        return {
            "kept": [kept(torch.where(same.any(1))[0]) for same in equal],
            "rows": torch.stack([one["cuts"][0][0][SPARSE_KEPT[keep] :] for one in runs]),
            "counts": [[len(cut) for cut, _ in one["cuts"]] for one in runs],
        }

    def sparsevlm_plus(self, keep: int) -> list[list[int]]:
        budget = {300: 192, 238: 128, 66: 64}[keep]
        return [self.visual(one["cuts"][0][1]) for one in self.sparse(budget, "2_0")]


def main(checkouts: Path, *only: str) -> None:
    """Write the fixtures, or those of some methods anew."""
    torch.manual_seed(0)
    fixtures: dict[str, Any] = json.loads(FIXTURES.read_text()) if only else {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        inputs.write_checkpoint(Path(folder))
        recorder = Recorder(checkouts, Path(folder))
        for name, (checkout, repository, file) in sorted(SOURCES.items()):
            if only and name not in only:
                continue
            commit = (checkouts / checkout / "COMMIT").read_text().strip()
            fixtures[name] = {"repository": repository, "file": file, "commit": commit, "cases": {}}
            for keep in BUDGETS[name]:
                found = getattr(recorder, name.replace("-", "_"))(keep)
                found = found if isinstance(found, dict) else {"kept": found}
                if "rows" in found:
                    found["rows"] = compact(found["rows"])
                fixtures[name]["cases"][str(keep)] = found
                print(name, keep, {what: [len(one) for one in value] for what, value in found.items()}, flush=True)
    text = json.dumps(dict(sorted(fixtures.items())), separators=(",", ":"))
    FIXTURES.write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    with mock.patch.object(torch.Tensor, "cuda", lambda self, *_: self):
        main(Path(sys.argv[1]), *sys.argv[2:])
