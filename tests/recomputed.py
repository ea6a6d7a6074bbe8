"""A decoder with cuts, recomputed without a cache, a row at a time, without padding, in NumPy and float64.

Every layer has a key set of its own: which prompt tokens new ones may look at there, at which positions, of which
sizes. Axis letters: n tokens of a row's prompt, M new tokens, T keys, D width, H heads, G key-value heads, d head
width.
"""

import dataclasses

import jax
import numpy as np

from models.engine.visual import TowerRequest
from tokencarve_jax import Tokens


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def linear(module, x):
    out = x @ np.asarray(module.weight[...], np.float64).T
    return out if module.bias is None else out + np.asarray(module.bias[...], np.float64)


def rms(module, x, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * np.asarray(module.scale[...], np.float64)


class Layer:
    """One decoder layer's formulas."""

    def __init__(self, module, config):
        self.module, self.config = module, config

    def rotated(self, x, positions):
        """[n, heads, d] at positions [n]."""
        width = self.config.head_dim
        frequency = self.config.rope_theta ** (-np.arange(0, width, 2) / width)
        angle = (positions[:, None] * frequency)[:, None]
        low, high = x[..., : width // 2], x[..., width // 2 :]
        return np.concatenate(
            [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=-1
        )

    def heads(self, hidden, positions):
        """Rotated queries and keys, and values."""
        normed = rms(self.module.input_layernorm, hidden, self.config.rms_norm_eps)
        parts = (self.module.self_attn.q_proj, self.module.self_attn.k_proj, self.module.self_attn.v_proj)
        query, key, value = (linear(part, normed).reshape(len(hidden), -1, self.config.head_dim) for part in parts)
        return self.rotated(query, positions), self.rotated(key, positions), value

    def weights(self, query, key, seen, sizes, places=None):
        """Attention [H, queries, T]; by distance too, where `places` of the tokens are given."""
        key = np.repeat(key, self.config.num_heads // self.config.num_kv_heads, axis=1)
        logits = np.einsum("shd,thd->hst", query, key) / self.config.head_dim**0.5 + np.log(sizes)
        if places is not None:
            frequency = self.config.rope_theta ** (-np.arange(0, self.config.head_dim, 2) / self.config.head_dim)
            apart = np.abs(places[:, None] - places)[..., None] * frequency
            logits = logits + np.log(2 - np.cos(apart).mean(-1))
        return softmax(np.where(seen, logits, -np.inf))

    def added(self, query, key, value, seen, sizes, places=None):
        value = np.repeat(value, self.config.num_heads // self.config.num_kv_heads, axis=1)
        out = np.einsum("hst,thd->shd", self.weights(query, key, seen, sizes, places), value)
        return linear(self.module.self_attn.o_proj, out.reshape(len(query), -1))

    def finish(self, hidden, added):
        hidden = hidden + added
        x, mlp = rms(self.module.post_attention_layernorm, hidden, self.config.rms_norm_eps), self.module.mlp
        gate = linear(mlp.gate_proj, x)
        return hidden + linear(mlp.down_proj, gate / (1 + np.exp(-gate)) * linear(mlp.up_proj, x))


@dataclasses.dataclass
class KeySet:
    """What new tokens see of the prompt in one layer."""

    key: np.ndarray
    value: np.ndarray
    positions: np.ndarray
    sizes: np.ndarray
    next_position: int
    stands: list  # which token of the prompt as it is now each one is; None where a cut left it out

    def leave(self, kept, full):
        new = {int(old): place for place, old in enumerate(kept)}
        self.stands = [None if token is None else new.get(token) for token in self.stands]
        if not full:
            left = [place for place, token in enumerate(self.stands) if token is not None]
            for name in ("key", "value", "positions", "sizes"):
                setattr(self, name, getattr(self, name)[left])
            self.stands = [self.stands[place] for place in left]


class Row:
    """One row of a packed prompt on its way through the layers."""

    def __init__(self, model, prompt, row, plan):
        self.config, self.decoder, self.plan = model.config.text, model.decoder, plan
        self.layers = [Layer(module, self.config) for module in model.decoder.layers]
        length = int(prompt.lengths[row])
        self.table = np.asarray(model.decoder.embed_tokens.embedding[...], np.float64)
        self.hidden = self.table[prompt.input_ids[row, :length]]
        self.positions, self.next_position = np.arange(length), length
        self.slots = np.where(prompt.visual_valid[row], prompt.visual_slots[row], -1)
        self.weighing, self.sizes = np.ones(length), np.ones(len(self.slots))
        self.known, self.records, self.sets, self.weighed, self.distant = {}, [], [], False, False
        text = np.setdiff1d(np.arange(length), self.slots)
        self.text = {"text": self.hidden[text], "text_valid": text > self.slots.max()}
        self.grid = prompt.grid
        self.outputs = []  # of attention, per layer: of all tokens, and of the visual ones
        self._see(model, prompt, row)

    def _see(self, model, prompt, row):
        cut, valid = self.plan.at("tower"), self.slots >= 0
        images = model.config.tokens_per_image
        visual = model.visual(prompt.pixel_values, TowerRequest(self.plan.reads(), cut), jax.random.key(0))
        features = np.asarray(prompt.feature_index[row])
        self.tower = {}
        if cut is None:
            self.tower = {name: np.asarray(array)[features] for (name, _), array in visual.evidence.items()}
            self.hidden[self.slots[valid]] = np.asarray(visual.tokens)[features[valid]]
            return
        kept, left, values, sizes, lives = visual.indices.shape[1], [], [], [], []
        for stretch in range(prompt.images):
            image = features[stretch * images] // images
            left += [stretch * images + int(i) for i in visual.indices[image]]
            values.append(visual.tokens.reshape(-1, kept, visual.tokens.shape[-1])[image])
            sizes.append(visual.sizes[image])
            lives.append(np.where(visual.assignment[image] < 0, -1, visual.assignment[image] + stretch * kept))
        self.leave(cut, np.array(left), *map(np.concatenate, (values, sizes, lives)), prompt.images)

    def medians(self, indices, assignment):
        """Positions of survivors: the lower median of those that live on in each."""
        groups = [sorted(self.positions[self.slots[assignment == row]]) for row in range(len(indices))]
        return np.array([group[(len(group) - 1) // 2] for group in groups])

    def leave(self, cut, indices, values, sizes, assignment, stretches):
        """Only these visual tokens are left, with new values and sizes."""
        self.grid = None
        slots = self.slots[indices]
        valid = slots >= 0
        medians = self.medians(indices, assignment)
        self.hidden[slots[valid]] = values[valid]
        self.distant |= cut.calibrated == "distances"
        self.weighed |= cut.weighs  # from then on every size counts, whoever merged
        if self.weighed:
            self.weighing = self.weighing.copy()  # earlier layers keep theirs
            self.weighing[slots[valid]] = sizes[valid]
        gone = np.setdiff1d(self.slots[self.slots >= 0], slots[valid])
        kept = np.setdiff1d(np.arange(len(self.hidden)), gone)
        if cut.positions == "median":
            self.positions = self.positions.copy()
            self.positions[slots[valid]] = medians[valid]
            kept = kept[np.argsort(self.positions[kept], kind="stable")]
        place = {int(slot): place for place, slot in enumerate(kept)}
        self.slots = np.array([place.get(int(slot), -1) for slot in slots])
        if cut.positions == "median":  # in the order in which they stand
            each = len(indices) // stretches
            key = np.where(self.slots < 0, len(kept), self.slots) + np.arange(len(indices)) // each * 2 * len(kept)
            order = np.argsort(key, kind="stable")
            indices, sizes, valid, self.slots = indices[order], sizes[order], valid[order], self.slots[order]
        self.records.append((indices, valid))
        self.hidden, self.positions, self.weighing = self.hidden[kept], self.positions[kept], self.weighing[kept]
        self.sizes = sizes
        self.tower = {name: array[indices] for name, array in self.tower.items()}
        for keys in self.sets:
            keys.leave(kept, cut.earlier == "full")
        if cut.renumbers:
            self.positions, self.next_position = np.arange(len(kept)), len(kept)

    def seen(self, positions, keys, offset):
        """Who sees whom: token s of the queries is number offset + s."""
        place = offset + np.arange(len(positions))
        seen = np.arange(len(keys)) <= place[:, None]
        if self.config.sliding_window:
            seen &= positions[:, None] - keys < self.config.sliding_window
        return seen

    def of_visual(self, array):
        """[n, ...] -> [N, ...], zero where a row has fewer."""
        valid = self.slots >= 0
        return np.where(valid.reshape(-1, *[1] * (array.ndim - 1)), array[np.where(valid, self.slots, 0)], 0)

    def next_attention(self, layer):
        """Of the last token to the visual ones, as a layer would see them."""
        query, key, *_ = layer.heads(self.hidden, self.positions)
        seen = self.seen(self.positions, self.positions, 0)[-1:]
        return self.of_visual(layer.weights(query[-1:], key, seen, np.ones(len(key))).mean(0)[0])

    def cut(self, cut, layer):
        positions = self.of_visual(self.positions)
        tokens = Tokens.of(
            self.of_visual(self.hidden).astype(np.float32),
            valid=self.slots >= 0,
            sizes=self.sizes,
            positions=positions,
            grid=self.grid if cut.scope == "image" or self.plan.images == 1 else None,
        )
        known = self.known | self.tower | self.text | {"next_attention": self.next_attention(layer)}
        told = {name: known[name].astype(np.float32) for name in cut.compressor.evidence if name in known}
        if cut.scope == "image":
            parts = self.plan.images
            tokens = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tokens)
            told = {name: array.reshape(parts, -1, *array.shape[1:]) for name, array in told.items()}
            each = tokens.shape[-1]
            left = cut.compressor(tokens, keep=cut.keep, **told)
            first = np.arange(parts)[:, None]
            indices = (np.asarray(left.indices) + each * first).reshape(-1)
            assignment = np.where(left.assignment < 0, -1, left.assignment + cut.keep * first).reshape(-1)
        else:
            parts, left = 1, cut.compressor(tokens, keep=cut.keep, **told)
            indices, assignment = np.asarray(left.indices), np.asarray(left.assignment)
        values = np.asarray(left.tokens.values).reshape(len(indices), -1)
        self.leave(cut, indices, values, np.asarray(left.tokens.sizes, np.float64).reshape(-1), assignment, parts)

    def prompt(self):
        """Hidden states after all layers, with key sets noted down."""
        words, asked = self.text["text"], self.text["text_valid"]
        entering = self.hidden[self.slots[self.slots >= 0]]
        dealt = softmax(np.where(asked, entering @ words.T, -np.inf)) if asked.any() else np.zeros((1, len(words)))
        self.text["text_relevance"] = dealt.mean(0)
        for index, layer in enumerate(self.layers):
            if cut := self.plan.at(index or "input"):
                self.cut(cut, layer)
            query, key, value = layer.heads(self.hidden, self.positions)
            stands = list(range(len(key)))
            self.sets.append(KeySet(key, value, self.positions, self.weighing, self.next_position, stands))
            seen = self.seen(self.positions, self.positions, 0)
            weights = layer.weights(query, key, seen, np.ones(len(key))).mean(0)
            text = np.setdiff1d(np.arange(len(key)), self.slots)
            places = self.positions if self.distant else None
            added = layer.added(query, key, value, seen, self.weighing, places)
            self.outputs.append((added, self.of_visual(added)))
            previous, self.hidden = self.hidden, layer.finish(self.hidden, added)
            normed = rms(self.decoder.norm, self.hidden, self.config.rms_norm_eps)
            self.known = {
                "query_attention": self.of_visual(weights[-1]),
                "text_attention": self.of_visual(weights[text].T).T,
                "keys": self.of_visual(key.reshape(len(key), -1)),
                "text_keys": key.reshape(len(key), -1)[text],
                "text_hidden": normed[text],
                "normed_hidden": self.of_visual(normed),
                "previous_hidden": self.of_visual(previous),
                "attention_output": self.of_visual(added),
            }
        return self.hidden

    def continued(self, ids):
        """Hidden states of new tokens [M] behind the prompt."""
        hidden = self.table[ids]
        for layer, old in zip(self.layers, self.sets, strict=True):
            positions = old.next_position + np.arange(len(ids))
            query, key, value = layer.heads(hidden, positions)
            key, value = np.concatenate([old.key, key]), np.concatenate([old.value, value])
            seen = self.seen(positions, np.concatenate([old.positions, positions]), len(old.key))
            sizes = np.concatenate([old.sizes, np.ones(len(ids))])
            hidden = layer.finish(hidden, layer.added(query, key, value, seen, sizes))
        return hidden

    def logits(self, hidden):
        return (
            rms(self.decoder.norm, hidden, self.config.rms_norm_eps)
            @ np.asarray(self.decoder.lm_head.weight[...], np.float64).T
        )


def recompute(model, prompt, plan, ids):
    """Logits [B, 1 + M, V] after the prompt and after each of the new tokens [B, M]; and the rows."""
    rows = [Row(model, prompt, row, plan) for row in range(len(prompt.input_ids))]
    logits = []
    for row, new in zip(rows, ids, strict=True):
        first = row.prompt()[-1:]
        logits.append(row.logits(np.concatenate([first, row.continued(new)])))
    return np.stack(logits), rows
