"""Every compressor by its name, one row each."""

from collections.abc import Mapping
from types import MappingProxyType

from tokencarve_jax.compressor import Compressor
from tokencarve_jax.methods import controls, dart, fastv, pooling, pyramiddrop, sparsevlm, tokencarve, uniform

_CARVE = Compressor("tokencarve", tokencarve.tokencarve, at="decoder", paper="arXiv 2503.10501")

_ROWS = (
    _CARVE,
    _CARVE.replace("tokencarve-attention-only", attention_weight=1.0),
    _CARVE.replace("tokencarve-information-only", attention_weight=0.0),
    _CARVE.replace("tokencarve-no-merge", oversample=1.0),
    _CARVE.replace("tokencarve-debias", debias=True),
    _CARVE.replace("tokencarve-norm", information="norm"),  # the control: no decomposition
    _CARVE.replace("tokencarve-svd", information="svd"),
    Compressor("tokencarve-attention-output", tokencarve.of_attention_output, at="decoder", paper="arXiv 2503.10501"),
    Compressor("random", controls.random, at="decoder"),
    Compressor("norm", controls.norm, at="decoder"),
    Compressor("fastv", fastv.fastv, at="decoder", paper="arXiv 2403.06764"),
    Compressor("uniform", uniform.uniform, at="input"),
    Compressor("pooling", pooling.pooling, at="input", paper="arXiv 2406.20092"),
    Compressor("pyramiddrop", pyramiddrop.pyramiddrop, at="decoder", paper="arXiv 2410.17247"),
    Compressor("sparsevlm", sparsevlm.sparsevlm, at="decoder", paper="arXiv 2410.04417"),
    Compressor("dart", dart.dart, at="decoder", paper="arXiv 2502.11494"),
)

COMPRESSORS: Mapping[str, Compressor] = MappingProxyType({row.name: row for row in _ROWS})
