"""The tokenizer and the image processor of the small LLaVA, written as Hugging Face files.

    python -c "from experiments.data.tiny_processor import save_processor; save_processor('experiments/tiny')"

The tokenizer knows about a hundred words, the letters and the digits. Words written in lower case, or with a capital
first letter, are words; words in capitals, as on signs, and numbers are spelled: "BIRD" is B I R D and "407" is 4 0 7.
Anything else is <unk>, so that every text can be encoded. Decoding joins what was spelled.
"""

from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from experiments.data.scenes.vocabulary import COLOURS, DIGITS, LETTERS, PATCH, SHAPES, SIZE

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
"""The special tokens; their ids are 0 to 4."""

_WORDS = (
    *("what", "word", "number", "is", "on", "the", "sign", "card", "where", "there", "a", "an", "in", "image"),
    *("left", "right", "or", "of", "above", "below", "top", "bottom", "yes", "no"),
)
_MARKS = ("?", ".", ",", ":")
_TURNS = ("USER", "ASSISTANT")

VOCABULARY = (*SPECIAL, *_TURNS, *_MARKS, *_WORDS, *COLOURS, *SHAPES, *LETTERS, *DIGITS)
"""Every token; its place is its id."""

PROMPT = "USER: <image>\n{question} ASSISTANT:"
"""The prompt of LLaVA-1.5, without its system message."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}"
    "{{ message['content'] + ' ' }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""What `apply_chat_template` writes: images first, then the text, as LLaVA-1.5 has it."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, which begins every text with <s> and pads on the left."""
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), *(normalizers.Replace(Regex(rf"\b{c}(?=[a-z])"), c.lower()) for c in LETTERS)]
    )
    core.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\b(?:USER|ASSISTANT)\b|[A-Z0-9]|[a-z]+|\S"), behavior="removed", invert=True
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", VOCABULARY.index("<s>"))]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),  # a space between any two tokens
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\b[A-Z]) (?=[A-Z]\b)|(?<=\b[0-9]) (?=[0-9]\b)| (?=[?.,:])"), ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """The tokenizer, and CLIP's image processor at 336 pixels: 576 placeholders for every <image>."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=list(OPENAI_CLIP_MEAN),
        image_std=list(OPENAI_CLIP_STD),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def save_processor(folder: str | Path) -> None:
    """Write the files that `AutoProcessor.from_pretrained(folder)` reads; the folder is made if it doesn't exist."""
    build_processor().save_pretrained(folder)


def normalise(images: np.ndarray) -> np.ndarray:
    """Do to images of the right size exactly what the processor does, fast.

    Args:
        images: uint8 [B, 336, 336, 3].

    Returns:
        float32 [B, 3, 336, 336], bit for bit the processor's `pixel_values`.
    """
    levels = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(x, np.float32) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    table = (levels - mean[:, None]) / std[:, None]
    return np.stack([np.take(table[channel], images[..., channel]) for channel in range(3)], axis=1)
