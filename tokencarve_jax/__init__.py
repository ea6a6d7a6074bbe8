"""TokenCarve for JAX: training-free compression of visual tokens inside multimodal language models.

The method of arXiv 2503.10501 as pure functions, arrays in and arrays out. Shapes are static, leading dimensions are
free, and nothing here knows about any particular model.
"""

from tokencarve_jax.attention import last_query_attention, remove_trend
from tokencarve_jax.budget import Budget, plan
from tokencarve_jax.carve import Carved, carve
from tokencarve_jax.check import check
from tokencarve_jax.compose import carve_sequence, compress_sequence
from tokencarve_jax.compressor import EVIDENCE, Compressor
from tokencarve_jax.positions import visual_positions
from tokencarve_jax.registry import COMPRESSORS
from tokencarve_jax.scores.information import information_contribution
from tokencarve_jax.sequence import CarvedSequence
from tokencarve_jax.tokens import Compressed, Selection, Tokens, gather

__all__ = [
    "COMPRESSORS",
    "EVIDENCE",
    "Budget",
    "Carved",
    "CarvedSequence",
    "Compressed",
    "Compressor",
    "Selection",
    "Tokens",
    "carve",
    "carve_sequence",
    "check",
    "compress_sequence",
    "gather",
    "information_contribution",
    "last_query_attention",
    "plan",
    "remove_trend",
    "visual_positions",
]
