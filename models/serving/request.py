"""Which cut before the decoder is asked for, and whether it can be had; without Flax, which engines do not have."""

from __future__ import annotations

from typing import Any

from models.engine.notation import INPUT, TOWER, Cut, named
from models.engine.plan import OF_TOWER
from tokencarve_jax import Compressor


def before_decoder(compressor: Compressor, keep: float | int) -> Cut:
    """The cut by which a compressor shortens each image by itself, before the decoder.

    Raises:
      ValueError: the compressor needs the question, or a layer of the decoder.
    """
    if missing := [name for name in compressor.required if name not in OF_TOWER]:
        raise ValueError(
            f"{compressor.name} needs {', '.join(missing)}: what is asked, or a layer of the decoder, which the server "
            "runs later; name a method that sees the image alone, such as visionzip or divprune"
        )
    return Cut(TOWER if compressor.at == TOWER else INPUT, compressor, keep, scope="image")


def of_config(config: Any) -> Cut | None:
    """The cut that the config of a LLaVA in an engine asks for by `carve`, a method and K; None without one.

    Args:
      config: transformers', with what the engine's user overrides (`hf_overrides={"carve": ["visionzip", 64]}`).

    Raises:
      ValueError: `carve` is something else, or the engine cannot give the method what it needs.
    """
    asked = getattr(config, "carve", None)
    if asked is None:
        return None
    if not (isinstance(asked, (list, tuple)) and len(asked) == 2 and isinstance(asked[0], str) and _count(asked[1])):
        raise ValueError(
            f"carve is {asked!r}; expected a registered method and how many tokens it leaves of each image, a count of "
            'at least 1, such as ["visionzip", 64]'
        )
    method, keep = asked
    try:
        cut = before_decoder(named(method), keep)
    except ValueError as error:
        raise ValueError(f"carve {method!r}: {error}") from error
    if cut.place == TOWER:
        raise ValueError(f"carve {method!r} merges in the tower's blocks, which the engine runs; name another method")
    if config.vision_config.model_type != "clip_vision_model":
        raise ValueError(f"carve {method!r}: the tower is a {config.vision_config.model_type}; expected CLIP's")
    return cut


def _count(keep: Any) -> bool:
    return isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
