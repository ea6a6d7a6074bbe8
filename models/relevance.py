"""The evidence `relevance`, from CLIP: questions in, the `relevance` of a model's `generate` out.

Axis letters: B questions, T pieces of a question, P width of CLIP's space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.engine.relevance import QuestionEmbeddings, check_tower
from models.errors import ConfigError
from models.families.tables import clip_table
from models.io.hub import find_checkpoint, read_hf_config, transformers
from models.io.table import abstract_model, load_weights
from models.io.untrusted import parsing
from models.nn.clip_config import clip_config
from models.nn.clip_text import Clip

# What benchmarks of LLaVA put behind a question, and CDPruner's code takes away before CLIP reads it.
_ASKED_BRIEFLY = "\nAnswer the question using a single word or phrase."


@jax.jit
def _embed(clip: Clip, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    return clip.embed_texts(input_ids, attention_mask)


class Relevance:
    """A CLIP that measures how relevant patches are to questions; load one with `Relevance.from_pretrained`.

    Attributes:
      clip: the text tower and the two projections.
      tokenizer: the checkpoint's own.
      folder: where both are from.

    Examples:
      A LLaVA and the CLIP that its tower is from::

        relevance = Relevance.from_pretrained("openai/clip-vit-large-patch14-336")
        llava.generate(..., carve=(("input", "cdpruner", 128),), relevance=relevance(["Where is the cat?"]))
    """

    def __init__(self, clip: Clip, tokenizer: Any, folder: Path):
        self.clip = clip
        self.tokenizer = tokenizer
        self.folder = folder

    @classmethod
    def from_pretrained(cls, source: str | Path, *, dtype: Any = jnp.float32, revision: str | None = None) -> Relevance:
        """Load a CLIP checkpoint in Hugging Face format; of its vision tower, the last norm alone.

        Args:
          source: a local folder with `config.json`, safetensors and a tokenizer, or a model id on the hub, such as
            "openai/clip-vit-large-patch14-336", LLaVA-1.5's.
          dtype: weights are cast to it as they are read.
          revision: branch, tag or commit on the hub; None is its main branch.

        Raises:
          ConfigError: the model is not a CLIP, or has no tokenizer that fits.
          CheckpointError: weights are missing, surplus, damaged or of the wrong shape; it lists them all.
          FileNotFoundError: `source` is neither a folder nor a model id that the hub has.
        """
        folder = find_checkpoint(source, revision=revision)
        config = clip_config(read_hf_config(folder)[0])
        abstract = abstract_model(lambda rngs: Clip(config, dtype=dtype, rngs=rngs))
        clip = load_weights(abstract, folder, clip_table(), dtype=dtype)
        with parsing(folder, ConfigError, "has no tokenizer that can be loaded"):
            tokenizer = transformers().AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        if len(tokenizer) != config.text.vocab_size:  # transformers makes an empty one up where files are missing
            raise ConfigError(
                f"{folder}: its tokenizer has {len(tokenizer)} tokens, and its model knows {config.text.vocab_size}; "
                "expected the tokenizer files that belong to the model"
            )
        return cls(clip, tokenizer, folder)

    def check(self, model: Any) -> None:
        """Raise ValueError if a model has another tower than this CLIP, see `models.engine.relevance.check_tower`."""
        check_tower(model, self.clip.patches.config)

    def __call__(self, questions: Sequence[str]) -> QuestionEmbeddings:
        """Embed questions.

        As in CDPruner's code, a line "Answer the question using a single word or phrase." is left out, and a question
        longer than the tower's context is cut into pieces of that length between any two tokens: only the first piece
        has the start token, and only the last one the end token.

        Args:
          questions: one per row of the batch, without the chat template.

        Returns:
          The `relevance` of a model's `generate`, `prompt` and the like.

        Raises:
          TypeError: `questions` is not a sequence of strings.
        """
        if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
            raise TypeError(f"questions are {questions!r}; expected a sequence of strings, one per row")
        asked = [question.replace(_ASKED_BRIEFLY, "") for question in questions]
        ids = self.tokenizer(asked, verbose=False)["input_ids"]
        pieces, mask = cut(ids, self.clip.text_tower.config.context)
        rows, count, context = pieces.shape
        embedded = _embed(self.clip, pieces.reshape(-1, context), mask.reshape(-1, context))
        return QuestionEmbeddings(embedded.reshape(rows, count, -1), jnp.asarray(mask.any(-1)), self.clip.patches)


def cut(texts: Sequence[Sequence[int]], context: int) -> tuple[np.ndarray, np.ndarray]:
    """Split texts into pieces of `context` tokens, as many as the longest one needs, padded with zeros.

    >>> ids, mask = cut([[5, 6, 7], [8]], 2)
    >>> ids.tolist(), mask.any(-1).tolist()
    ([[[5, 6], [7, 0]], [[8, 0], [0, 0]]], [[True, True], [True, False]])

    Args:
      texts: B times token ids.
      context: S.

    Returns:
      [B, T, S] int32, and [B, T, S] bool, False for padding.
    """
    lengths = np.array([len(text) for text in texts])
    count = max(1, -(-int(lengths.max()) // context))
    ids = np.zeros((len(texts), count * context), np.int32)
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    ids[mask] = np.concatenate(texts)
    shape = (len(texts), count, context)
    return ids.reshape(shape), mask.reshape(shape)
