"""LLaVA and LLaVA-NeXT, by their public names."""

from models.families.llava import Llava, LlavaConfig
from models.families.llava_next import LlavaNext, LlavaNextConfig

__all__ = ["Llava", "LlavaConfig", "LlavaNext", "LlavaNextConfig"]
