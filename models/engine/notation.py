"""Cuts, and how they are written: `fastv@2=128,full` is METHOD@PLACE=KEEP[,OPTION...]."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokencarve_jax import COMPRESSORS, Compressor

TOWER, INPUT = "tower", "input"
# The options of a cut in text: word -> (attribute, value).
OPTIONS: Mapping[str, tuple[str, Any]] = {
    "joint": ("scope", "joint"),
    "image": ("scope", "image"),
    "kept": ("positions", "kept"),
    "renumbered": ("positions", "renumbered"),
    "median": ("positions", "median"),
    "gathered": ("earlier", "gathered"),
    "full": ("earlier", "full"),
    "calibrated": ("calibrated", True),
    "uncalibrated": ("calibrated", False),
    "distances": ("calibrated", "distances"),
}
MERGED = "merged"  # one more option: the compressor's `rest`
WORDS = ", ".join([*OPTIONS, MERGED])
FORM = "METHOD@PLACE=KEEP[,OPTION...]"
EXAMPLE = "tokencarve@2=128,calibrated"


@dataclasses.dataclass(frozen=True)
class Cut:
    """One shortening.

    Attributes:
      place: a decoder layer from 1 on, "input" or "tower".
      compressor: which tokens survive.
      keep: how many: a fraction or a count; a count once the plan is made.
      scope: "joint": all images of a row share one budget; "image": each has its own. A cut in the tower is always
        for each image.
      positions: of the survivors in later layers: "kept"; "renumbered" without gaps; or "median": the lower median of
        all tokens that merged into a survivor, each axis by itself. The whole sequence is then ordered by these, of
        equals the earlier one first, so that a survivor of two images may pass the text between them. None: "kept" in
        the decoder, as TokenCarve and FastV do, and "renumbered" before it, where methods see a shorter prompt;
        always "kept" in families whose positions have several axes (M-RoPE), which cannot be renumbered.
      earlier: the caches of earlier layers are "gathered" to the survivors, or stay "full".
      calibrated: later decoder layers add the logarithm of each token's size to its key's attention logit, for all
        later merges too. None: as the compressor says; a cut in the tower is calibrated in the tower's blocks alone.
        "distances": besides, in prefill, what `models.nn.attention.log_distances` gives all pairs of tokens (RESTORE).
    """

    place: int | str
    compressor: Compressor
    keep: int | float
    scope: str = "joint"
    positions: str | None = None
    earlier: str = "gathered"
    calibrated: bool | str | None = None

    @property
    def renumbers(self) -> bool:
        """Whether survivors get new positions."""
        return self.positions == "renumbered" or (self.positions is None and isinstance(self.place, str))

    @property
    def moves(self) -> bool:
        """Whether survivors have other positions in later layers."""
        return self.renumbers or self.positions == "median"

    @property
    def weighs(self) -> bool:
        """Whether sizes count in the attention of later layers."""
        if self.calibrated is None:
            return self.compressor.calibrated and self.place != TOWER
        return bool(self.calibrated)

    @property
    def weighs_distances(self) -> bool:
        """Whether distances do too, in prefill."""
        return self.calibrated == "distances"

    def __str__(self) -> str:
        """`METHOD@PLACE=KEEP[,OPTION...]`, as on command lines."""
        words = [word for word, (name, value) in OPTIONS.items() if getattr(self, name) == value != DEFAULTS[name]]
        registered = COMPRESSORS.get(self.compressor.name)
        if self.compressor.rest == MERGED and (registered is None or registered.rest != MERGED):
            words.append(MERGED)
        return ",".join([f"{self.compressor.name}@{self.place}={self.keep}", *words])


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Cut)}


def named(name: str) -> Compressor:
    """The registered compressor of that name; ValueError with all names where there is none."""
    try:
        return COMPRESSORS[name]
    except KeyError as error:
        raise ValueError(error.args[0]) from error


def read(text: str, find: Callable[[str], Compressor] = named) -> Cut:
    """A cut from its text; of a registered method `str` is the way back.

    Args:
      text: METHOD@PLACE=KEEP[,OPTION...], such as "tome@tower=288" or "tokencarve@2=0.222,calibrated".
      find: what a METHOD stands for; may raise ValueError.

    Raises:
      ValueError: one line that names the cut, what is wrong with it, and the form that was expected.
    """
    method, _, rest = text.rpartition("@")
    place, _, rest = rest.partition("=")
    keep, *words = rest.split(",")
    try:
        if not (method and place and keep):
            raise ValueError("a part is missing")
        compressor, options = with_options(find(method), words)
        return Cut(_place(place), compressor, read_keep(keep), **options)
    except ValueError as error:
        raise ValueError(f"cut {text!r}: {error}; expected {FORM}, such as {EXAMPLE}") from error


def read_keep(text: str) -> float | int:
    """A budget from its text: "0.222" is a fraction, "128" a count; ValueError for what is neither.

    >>> read_keep("0.222"), read_keep("128")
    (0.222, 128)
    """
    try:
        value: float | int = float(text) if set(text) & set(".eE") else int(text)
    except ValueError:
        value = 0
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise ValueError(
            f"{text!r} is neither a fraction of the visual tokens above 0 and up to 1, such as 0.222, "
            "nor a count of at least 1, such as 128"
        )
    return value


def _place(text: str) -> int | str:
    if text in (TOWER, INPUT):
        return text
    if not text.isdecimal():
        raise ValueError(f"the place {text!r} is neither {TOWER!r}, {INPUT!r} nor the number of a layer")
    return int(text)


def with_options(compressor: Compressor, words: Sequence[str]) -> tuple[Compressor, dict[str, Any]]:
    """What words of `OPTIONS` and `MERGED` choose: the compressor of a `Cut`, and its other attributes.

    Raises:
      ValueError: there is no such word, or two of them choose the same attribute.
    """
    chosen = dict[str, Any]()
    for word in words:
        if word == MERGED:
            compressor = dataclasses.replace(compressor, rest=MERGED)
            continue
        if word not in OPTIONS:
            raise ValueError(f"there is no option {word!r}; there are {WORDS}")
        name, value = OPTIONS[word]
        if name in chosen:
            raise ValueError(f"{name} is chosen twice")
        chosen[name] = value
    return compressor, chosen
