"""A processor of transformers' own parts, for families whose class there cannot be made without torchvision.

That class wants its video processor, which asks for torchvision even where there is no video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.io.hub import transformers
from models.io.untrusted import read_json


class AssembledProcessor:
    """Tokenizer, image processor and chat template of a checkpoint; subclasses make a prompt with them.

    Args:
      tokenizer: of the checkpoint.
      image_processor: transformers', with Pillow.
      chat_template: Jinja's, or None.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, chat_template: str | None):
        self.tokenizer, self.image_processor, self.chat_template = tokenizer, image_processor, chat_template

    @staticmethod
    def parts(folder: Path, **options: Any) -> tuple[Any, Any, str | None]:
        """The three from a checkpoint's folder; what transformers raises for files that cannot be used."""
        package, old = transformers(), folder / "chat_template.json"
        tokenizer = package.AutoTokenizer.from_pretrained(folder, **options)
        images = package.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        template = tokenizer.chat_template
        if template is None and old.exists():
            template = read_json(old, ValueError).get("chat_template")
        return tokenizer, images, template

    def token(self, kind: str, usual: str) -> str:
        """The placeholder of an image or a video: the tokenizer's, or else the usual one."""
        return getattr(self.tokenizer, f"{kind}_token", None) or usual

    def apply_chat_template(self, turns: Sequence[Any], *, add_generation_prompt: bool = False) -> str:
        """A conversation as text, a placeholder for each image or video."""
        text: str = self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text


def repeated(text: Sequence[str], placeholder: str, counts: Sequence[int], what: str) -> list[str]:
    """Texts with each placeholder as often as its image or video has visual tokens.

    Args:
      text: one or more.
      placeholder: of one image or video.
      counts: visual tokens of all in order.
      what: they are, for the error.

    Raises:
      ValueError: there are not as many placeholders as `counts`.
    """
    pieces = [one.split(placeholder) for one in text]
    if (found := sum(map(len, pieces)) - len(pieces)) != len(counts):
        raise ValueError(f"the text holds {found} times {placeholder} for {len(counts)} {what}")
    left = iter(counts)
    return [first + "".join(placeholder * next(left) + rest for rest in more) for first, *more in pieces]
