"""What is asked: text of every kind, packed as it is for a model."""

import dataclasses
import functools
import random
from collections.abc import Iterator

import numpy as np

from experiments.core.loading import Checkpoint
from experiments.core.memory import check_request
from tests.hostile.case import Case

IMAGE = np.full((20, 30, 3), 90, np.uint8)
PIECES = (
    *("What is this?", "\0", "\x1b[2J", "\u202e", "e\u0301" * 40, "\U0001f642", "\r\n"),
    *("</s>", "<s>", "<pad>", "{{ 1/0 }}", "%s"),
)
REFUSED = ("<image>", "<image><image>\n", "\udcff", "a\ud800b", "word " * 10_000)


def ask(checkpoint: Checkpoint, text: str, new_tokens: int = 8) -> None:
    """All that is done before a model sees a prompt."""
    inputs = checkpoint.encode([[IMAGE]], [text])
    check_request(checkpoint.llava, inputs, new_tokens)
    checkpoint.llava.prompt(**dataclasses.asdict(inputs))


def known(checkpoint: Checkpoint) -> Iterator[Case]:
    """Ordinary questions, and those that must be refused."""
    for text in ("Where is the red circle?", "", "What is there? " * 20):
        yield Case(f"prompt {text[:30]!r}", functools.partial(ask, checkpoint, text), "worked")
    for text in REFUSED:
        yield Case(f"prompt {text[:30]!r}", functools.partial(ask, checkpoint, text), "refused")
    for count in (2**11, 10**8, 2**31 - 1):
        yield Case(f"{count} new tokens", functools.partial(ask, checkpoint, "What?", count), "refused", "context is")


def random_case(checkpoint: Checkpoint, generator: random.Random, number: int) -> Case:
    """A few pieces, or any characters at all."""
    if generator.random() < 0.5:
        text = "".join(generator.choices((*PIECES, *REFUSED[:4]), k=generator.randrange(1, 12)))
    else:
        text = "".join(chr(generator.randrange(0x110000)) for _ in range(generator.randrange(1, 60)))
    return Case(f"prompt {number}: {text[:30]!r}", functools.partial(ask, checkpoint, text))
