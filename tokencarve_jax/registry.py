"""Every compressor by its name, one row each."""

from collections.abc import Mapping
from types import MappingProxyType

from tokencarve_jax.compressor import Compressor
from tokencarve_jax.methods import cdpruner, controls, divprune, fastv, mmtok, scope, tokencarve, zoo_prune

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
    Compressor("divprune", divprune.divprune, at="input", paper="arXiv 2503.02175"),
    Compressor("cdpruner", cdpruner.cdpruner, at="input", paper="arXiv 2506.10967"),
    Compressor("scope", scope.scope, at="input", paper="arXiv 2510.24214"),
    Compressor("mmtok", mmtok.mmtok, at="input", paper="arXiv 2508.18264"),
    Compressor("zoo-prune", zoo_prune.zoo_prune, at="input", paper="arXiv 2509.24837"),
)

COMPRESSORS: Mapping[str, Compressor] = MappingProxyType({row.name: row for row in _ROWS})
