"""A pool of training scenes, made once and kept on disk, so that every stage of training draws from it.

Axis letters: P scenes of the pool, B batch, N patches, Q questions of a scene, T tokens of a question.
"""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.core import processes
from experiments.core.results import cores
from experiments.data.scenes import GRID, PATCH, Labels, SceneConfig, SceneObject, make_scene
from experiments.data.scenes.questions import ask
from experiments.data.scenes.vocabulary import COLOURS, DIGITS, KINDS, LETTERS, SHAPES
from experiments.data.tiny_processor import PROMPT, build_tokenizer
from experiments.training.stages import NUM_PATCHES
from models.io.writing import replacing

IGNORE = -1  # marks tokens that no loss is taken on
QUESTION_WIDTH = 16  # T; the longest question with its answer has 15
HINTS = 2  # questions per image that are replaced by hints


def flatten_patches(image: np.ndarray) -> np.ndarray:
    """uint8 [336, 336, 3] -> [576, 3 * 14 * 14], the order of `models.nn.clip.patchify`."""
    grid = image.reshape(GRID, PATCH, GRID, PATCH, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(NUM_PATCHES, -1)


def _scene(index: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[SceneObject, ...]]:
    scene = make_scene("train", index, seed, questions=0)
    labels = np.stack([field.reshape(-1) for field in scene.labels]).astype(np.int8)
    return flatten_patches(scene.image), labels, scene.objects


@dataclasses.dataclass(frozen=True)
class Pool:
    """Training scenes.

    Attributes:
      patches: uint8 [P, N, 588], read from disk as needed.
      labels: int8 [P, 6, N], the fields of `experiments.data.scenes.Labels` in order.
      objects: what stands in each scene; questions are made from it afresh.
    """

    patches: np.ndarray
    labels: np.ndarray
    objects: list[tuple[SceneObject, ...]]

    def __len__(self) -> int:
        """P."""
        return len(self.objects)

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Scenes of one batch, ascending [B]."""
        return np.sort(rng.choice(len(self), batch, replace=False))


def make_pool(folder: Path, size: int, seed: int) -> Pool:
    """Make a pool of `size` scenes in a folder, or open the one that is there; `patches` is mapped from disk."""
    done = folder / f"pool-{size}-{seed}.pkl"
    pixels = done.with_suffix(".npy")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        patches = np.lib.format.open_memmap(pixels, "w+", np.uint8, (size, NUM_PATCHES, 3 * PATCH * PATCH))
        labels = np.empty((size, len(Labels._fields), NUM_PATCHES), np.int8)
        objects = []
        with processes.helpers(cores()) as workers:
            processes.start(workers)
            scenes = workers.map(partial(_scene, seed=seed), range(size), chunksize=32)
            for index, scene in enumerate(tqdm(scenes, "scenes", size)):
                patches[index], labels[index] = scene[:2]
                objects.append(scene[2])
        patches.flush()
        with replacing(done) as part:  # only a whole pool has the final name
            part.write_bytes(pickle.dumps((labels, objects)))
    labels, objects = pickle.loads(done.read_bytes())
    return Pool(np.load(pixels, mmap_mode="r"), labels, objects)


NEAR_CLASSES = (len(KINDS), 1 + len(COLOURS), 1 + len(SHAPES), *[1 + len(LETTERS + DIGITS)] * 4)
"""How many classes each field of `near_objects` has: kind, colour, shape, and four characters; 0 means none."""


def near_objects(objects: tuple[SceneObject, ...]) -> np.ndarray:
    """Say which object is on each patch or next to it: int8 [7, N], the fields of `NEAR_CLASSES`.

    A patch between two objects belongs to the one whose centre is nearer; an object's own patches are its own.
    """
    y, x = (place + 0.5 for place in np.divmod(np.arange(NUM_PATCHES), GRID))
    best = np.full(NUM_PATCHES, np.inf)
    out = np.zeros((len(NEAR_CLASSES), NUM_PATCHES), np.int8)
    for item in objects:
        u, v = item.centre
        across, down = np.abs(x - u) - item.width / 2, np.abs(y - v) - item.height / 2
        own, ring = np.maximum(across, down) < 0, np.maximum(across, down) < 1
        distance = np.where(own, -1.0, np.where(ring, np.hypot(x - u, y - v), np.inf))
        nearer = distance < best
        best[nearer] = distance[nearer]
        characters = [1 + (LETTERS + DIGITS).index(character) for character in item.text]
        shape = 1 + SHAPES.index(item.name) if item.kind == "shape" else 0
        fields = [KINDS.index(item.kind), 1 + COLOURS.index(item.colour), shape, *characters]
        out[:, nearer] = np.asarray(fields + [0] * (len(NEAR_CLASSES) - len(fields)), np.int8)[:, None]
    return out


def choose_patches(kinds: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """All patches that show an object, and background at random up to `count`: [B, N] kinds -> [B, count] ascending."""
    if count >= kinds.shape[1]:
        return np.broadcast_to(np.arange(kinds.shape[1]), kinds.shape)
    lottery = rng.random(kinds.shape) - (kinds > 0)
    return np.sort(np.argpartition(lottery, count, axis=1)[:, :count], axis=1)


def hint(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> tuple[str, str]:
    """A question of training alone: on which side of the image is a shape, in one word?

    Held-out questions ask for a shape's column only behind another word, or against a second shape's. Learned from
    those alone, it is found late or never.
    """
    shapes = [item for item in objects if item.kind == "shape"]
    item = shapes[rng.integers(len(shapes))]
    return f"Is the {item.phrase} left or right?", "left" if item.centre[0] < GRID / 2 else "right"


class QuestionTokens:
    """Tokenises questions into the exact ids that the processor gives, prefix and question apart.

    Attributes:
      prefix: ids before the image's placeholders.
    """

    def __init__(self) -> None:
        self._tokenizer = build_tokenizer()
        head, self._tail = PROMPT.split("<image>")
        self.prefix = np.asarray(self._tokenizer(head)["input_ids"], np.int32)
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without the start token."""
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def batch(
        self,
        scenes: list[tuple[SceneObject, ...]],
        *,
        questions: int,
        short: float,
        turns: bool = False,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fresh questions about each scene.

        Args:
          scenes: objects of B scenes.
          questions: Q, per scene.
          short: share of questions in their short form, without the turn marker before the answer.
          turns: half of the questions follow the one before them and its answer, as in a conversation.
          rng: where the choices come from.

        Returns:
          Input ids and, shifted by one, the answers' ids (`IGNORE` elsewhere), both int32 [B, Q, T].
        """
        ids = np.zeros((len(scenes), questions, QUESTION_WIDTH * (2 if turns else 1)), np.int32)
        targets = np.full_like(ids, IGNORE)
        eos = [self._tokenizer.eos_token_id]
        for row, objects in enumerate(scenes):
            before = ""
            for column, question in enumerate(ask(objects, questions, int(rng.integers(3)), SceneConfig(), rng)):
                in_short = rng.random() < short
                text, reply = (question.text, question.answer) if column < questions - HINTS else hint(objects, rng)
                text = question.short if in_short else self._tail.format(question=text)
                reply = question.answer if in_short else reply
                if turns and column % 2:
                    text = f"{before} USER: {text.lstrip()}"
                before = f"{text} {reply}"
                prompt, answer = self.encode(text), self.encode(reply) + eos
                ids[row, column, : len(prompt) + len(answer) - 1] = prompt + answer[:-1]
                targets[row, column, len(prompt) - 1 : len(prompt) - 1 + len(answer)] = answer
        return ids, targets
