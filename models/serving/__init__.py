"""Compressed images for serving engines, without a change to either: a server takes embeddings in an image's place.

Imports no engine and no PyTorch.
"""

from models.serving.client import Answer, ask
from models.serving.embeds import before_decoder, image_embeds

__all__ = ["Answer", "ask", "before_decoder", "image_embeds"]
