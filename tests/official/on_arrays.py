"""Those of the authors' functions that are run on plain arrays, see `tests.official.record`."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.official import inputs
from tests.official.authors import SOURCES, Returning, causal, decoder, from_mask, functions, kept
from tests.official.cases import GRID


class OnArrays:
    """One method for each of the authors'."""

    model: Any
    text: Any

    def __init__(self, checkouts: Path):
        self.checkouts = checkouts

    def file(self, name: str) -> Path:
        return self.checkouts / SOURCES[name][0] / SOURCES[name][2]

    def llava(self, *seen: Any, projector: Any = None, **more: Any) -> SimpleNamespace:
        """`self` of `encode_images`, whose tower returns what is given."""
        projector = projector or self.model.multi_modal_projector
        parts = SimpleNamespace(get_vision_tower=lambda: lambda *_, **__: seen, mm_projector=projector)
        return SimpleNamespace(get_model=lambda: parts, **more)

    @staticmethod
    def arrays(*, alike: bool = False) -> list[dict[str, torch.Tensor]]:
        """Plain arrays of a few images, each as a batch of one."""
        cases = [inputs.arrays(case, alike=alike) for case in range(inputs.IMAGES)]
        return [{name: torch.tensor(array)[None] for name, array in case.items()} for case in cases]

    def apet(self, keep: int) -> dict[str, Any]:
        sample = functions(self.file("apet").parent / "utils.py", "fps").fps
        run = functions(self.file("apet"), "encode_images", "token_merging", fps=sample)
        features = torch.cat([case["values"] for case in self.arrays()])
        seen, count = (F.pad(features, (0, 0, 1, 0)), None), {"get_visual_token_num": lambda: keep}
        here = self.llava(*seen, projector=nn.Identity(), **count)
        here.model, here.token_merging = SimpleNamespace(basis_token_num=10), functools.partial(run.token_merging, None)
        first = int(jax.random.uniform(jax.random.key(inputs.SEED)) * inputs.PATCHES)  # there at random
        with (
            mock.patch.object(torch, "randint", return_value=torch.full((len(features),), first)),
            mock.patch.object(torch.Tensor, "half", lambda x: x),
        ):
            left, mask = run.encode_images(here, None)
        return {"kept": from_mask(mask), "rows": left[mask].reshape(len(left), keep, -1)}

    @staticmethod
    def videos() -> list[torch.Tensor]:
        """Clips [N, D] in float64."""
        return [torch.tensor(inputs.video(case)["values"]).double() for case in range(inputs.IMAGES)]

    def evs(self, keep: int) -> list[list[int]]:
        run = functions(self.file("evs"), "compute_retained_tokens_count", "compute_retention_mask")
        share = 1 - (keep + 0.5) / inputs.PATCHES
        return from_mask(torch.stack([run.compute_retention_mask(one, GRID, 1, share) for one in self.videos()]))

    def everest(self, keep: int) -> list[list[int]]:
        run = functions(self.file("everest"), "VisionTransformer.mcm_step").mcm_step
        frames, places = GRID[0], GRID[1] * GRID[2]
        here = SimpleNamespace(mcm_ratio=1 - (keep + 0.5) / inputs.PATCHES)
        return [from_mask(~run(here, one[None], 1, places, frames, one.shape[-1]))[0] for one in self.videos()]

    def vidcom2(self, keep: int) -> list[list[int]]:
        names = ("_multi_scale_gaussian", "select_low_var_channels", "compute_gaussian_scores", "compute_scales")
        run = functions(self.file("vidcom2"), *names, "select_outlier_indices", "_map_linear_offset")
        places, found = GRID[1] * GRID[2], []
        for one in self.videos():
            to_video, to_frame = run.compute_gaussian_scores(run.select_low_var_channels(one), places)
            scales = run.compute_scales(-to_video.mean(dim=-1), keep / inputs.PATCHES)
            chosen = run.select_outlier_indices(to_video + to_frame, scales, places)
            found.append(kept(run._map_linear_offset(chosen, places)))
        return found

    def token_dynamics(self, keep: int) -> dict[str, Any]:
        """Their clusters, with our draws; theirs cannot be called as the model's code does, by other names."""
        names = ("sample_init_centroids", "compute_cosine_distances", "find_clusters_index", "update_centroids", "fit")
        run = functions(self.file("token-dynamics"), *(f"KMeansTorch.{name}" for name in names))
        draws = np.asarray(jax.random.uniform(jax.random.key(inputs.SEED), (keep,), np.float32), np.float64)
        rows = []
        for one in self.videos():
            left = iter(draws.tolist())

            def first(low: int, high: int, _: Any, left: Any = left) -> torch.Tensor:
                return torch.tensor(int(next(left) * high))

            def drawn(odds: torch.Tensor, _: int, left: Any = left) -> torch.Tensor:
                return torch.searchsorted(odds.cumsum(0), next(left), right=True)

            here = SimpleNamespace(num_clusters=keep, max_iteration=50, tol=1e-4, centroids=None)
            for name, function in vars(run).items():
                setattr(here, name, functools.partial(function, here))
            with mock.patch.multiple(torch, randint=first, multinomial=drawn):
                labels, _ = here.fit(one)
            rows.append(torch.stack([one[labels == cluster].mean(0) for cluster in range(keep)]))
        return {"rows": torch.stack(rows)}

    def tokencarve_svd(self, keep: int) -> dict[str, Any]:
        prepared = {"_prepare_4d_causal_attention_mask": causal, "DynamicCache": None, "Cache": tuple}
        prepared["BaseModelOutputWithPast"] = SimpleNamespace
        run = functions(self.file("tokencarve-svd"), "LlamaModel.forward", **prepared).forward
        found: dict[str, Any] = {"kept": [], "rows": []}
        for case in range(inputs.IMAGES):
            given = inputs.arrays(case)
            hidden = torch.tensor(given["values"])[None]
            attention = torch.tensor(given["attention"]).expand(1, 1, len(hidden[0]), -1)
            layers: list[Any] = []
            for _ in range(3):
                layer = mock.Mock(return_value=(hidden.clone(), attention, None))
                layers.append(layer)
            here = decoder(self.text, "attention", layers=layers, norm=lambda x: x)
            here.token_carve_img_index, here.use_token_carve = None, True
            here.token_carve_sys_length, here.token_carve_image_token_length = 0, inputs.PATCHES
            here.token_carve_work_layer, here.token_carve_SV_AV_mode, here.token_carve_SV_AV_weight = 2, 0, 0.5
            here.token_carve_image_token_rank, here.token_carve_merge_token_nums = keep * 3 // 2, keep // 2
            cache = mock.MagicMock()
            cache.get_usable_length.return_value = 0
            run(here, inputs_embeds=hidden, past_key_values=cache, use_cache=False)
            found["kept"].append(kept(here.token_carve_img_index))
            found["rows"].append(layers[2].call_args.args[0][0])
        found["rows"] = torch.stack(found["rows"])
        return found

    def tome(self, keep: int) -> dict[str, Any]:
        run = functions(self.file("tome"), "bipartite_soft_matching", do_nothing=None).bipartite_soft_matching
        rows = []
        for case in range(inputs.IMAGES):
            given = {name: torch.tensor(array) for name, array in inputs.arrays(case).items()}
            merge, _ = run(given["keys"][None], inputs.PATCHES - keep)
            size = torch.ones(1, inputs.PATCHES, 1)
            rows.append((merge(given["values"][None] * size, mode="sum") / merge(size, mode="sum"))[0])
        return {"rows": torch.stack(rows)}

    def prunesid(self, keep: int) -> list[list[int]]:
        def exact(matrix: torch.Tensor, q: int) -> tuple[torch.Tensor, ...]:
            left, sizes, right = torch.linalg.svd(matrix - matrix.mean(-2, keepdim=True), full_matrices=False)
            return left[..., :q], sizes[..., :q], right[..., :q, :].mT

        run = functions(self.file("prunesid"), "forward", "batch_pca", "batch_similarity_nms").forward
        found = []
        for case in self.arrays():
            hidden, attention = F.pad(case["values"], (0, 0, 1, 0)), F.pad(case["attention"][:, None, None], (1, 0))
            seen = Returning(out=SimpleNamespace(hidden_states=(hidden, hidden), attentions=(attention, attention)))
            here = SimpleNamespace(vision_tower=seen, need_token_num=keep + 1, device="cpu", dtype=torch.float32)
            with mock.patch.object(torch, "pca_lowrank", exact):  # which starts at random
                found.append(kept(run(here, hidden)[1][0, 1:] - 1))
        return found

    def prumerge(self, keep: int) -> dict[str, Any]:
        hooks: dict[str, Any] = {}
        given = {"outputs": hooks, "outlier_dectection": None, "hook_k": "k", "hook_q": "q"}
        helper = functions(self.file("prumerge"), "complement_idx")
        run = functions(self.file("prumerge"), "token_prune_merge_advanced", **given, **vars(helper))
        rows = []
        for case in range(inputs.IMAGES):
            made = {name: torch.tensor(array) for name, array in inputs.arrays(case, 48).items()}
            none = SimpleNamespace(register_forward_hook=lambda _: SimpleNamespace(remove=lambda: None))
            layer = SimpleNamespace(self_attn=SimpleNamespace(k_proj=none, q_proj=none))
            keys, features = (F.pad(made[name], (0, 0, 1, 0))[None] for name in ("keys", "values"))
            hooks |= {"desired_k": keys, "desired_q": torch.zeros_like(keys)}
            hooks["desired_q"][0, 0] = made["query"]
            encoder = SimpleNamespace(encoder=SimpleNamespace(layers=[layer] * 24))
            seen = Returning(out=SimpleNamespace(hidden_states=(features, features)), vision_model=encoder)
            tower = SimpleNamespace(vision_tower=seen, select_layer=-2)
            tower.device, tower.dtype = "cpu", torch.float32
            tower.feature_select = lambda outs: outs.hidden_states[-2][:, 1:]
            share = (keep - 1 + 0.5) / inputs.PATCHES
            left = run.token_prune_merge_advanced(tower, torch.zeros(1), if_adaptive=False, reduction_ratio=share)
            rows.append(left[0])
        return {"rows": torch.stack(rows)}
