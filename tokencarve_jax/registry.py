"""Every compressor by its name, one row each."""

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType

from tokencarve_jax.compressor import Compressor
from tokencarve_jax.methods import (
    apet,
    cdpruner,
    controls,
    dart,
    divprune,
    everest,
    evs,
    fastervlm,
    fastv,
    hiprune,
    holov,
    mmtok,
    otprune,
    pooling,
    prumerge,
    prunesid,
    pyramiddrop,
    scope,
    sparsevlm,
    token_dynamics,
    tokencarve,
    tome,
    trim,
    uniform,
    v2drop,
    vidcom2,
    visionzip,
    vispruner,
    zoo_prune,
)
from tokencarve_jax.promotion import usual_promotion

_CARVE = Compressor("tokencarve", tokencarve.tokencarve, at="decoder", paper="arXiv 2503.10501")

_PRUMERGE = Compressor("prumerge", prumerge.prumerge, at="input", paper="arXiv 2403.15388", tower_layer=-1)

_ROWS = (
    _CARVE,
    _CARVE.replace("tokencarve-attention-only", attention_weight=1.0),
    _CARVE.replace("tokencarve-information-only", attention_weight=0.0),
    _CARVE.replace("tokencarve-no-merge", oversample=1.0),
    _CARVE.replace("tokencarve-debias", debias=True),
    _CARVE.replace("tokencarve-norm", information="norm"),  # the control: no decomposition
    _CARVE.replace("tokencarve-svd", information="svd"),
    # All that it would drop joins survivors, whose sizes count in later layers.
    dataclasses.replace(_CARVE, name="tokencarve-calibrated", rest="merged", calibrated=True),
    Compressor("tokencarve-attention-output", tokencarve.of_attention_output, at="decoder", paper="arXiv 2503.10501"),
    Compressor("random", controls.random, at="decoder"),
    Compressor("norm", controls.norm, at="decoder"),
    Compressor("fastv", fastv.fastv, at="decoder", paper="arXiv 2403.06764"),
    Compressor("tome", tome.tome, at="tower", paper="arXiv 2210.09461", calibrated=True),
    Compressor("visionzip", visionzip.visionzip, at="input", paper="arXiv 2412.04467"),
    Compressor("fastervlm", fastervlm.fastervlm, at="input", paper="arXiv 2412.01818"),
    Compressor("vispruner", vispruner.vispruner, at="input", paper="arXiv 2412.01818"),
    Compressor("hiprune", hiprune.hiprune, at="input", paper="arXiv 2508.00553", reads_grid=True),
    _PRUMERGE,
    _PRUMERGE.replace("prumerge-plus", spatial=0.75),
    Compressor("holov", holov.holov, at="input", paper="arXiv 2510.02912"),
    Compressor("prunesid", prunesid.prunesid, at="input", paper="arXiv 2603.09480"),
    Compressor("divprune", divprune.divprune, at="input", paper="arXiv 2503.02175"),
    Compressor("cdpruner", cdpruner.cdpruner, at="input", paper="arXiv 2506.10967"),
    Compressor("scope", scope.scope, at="input", paper="arXiv 2510.24214"),
    Compressor("mmtok", mmtok.mmtok, at="input", paper="arXiv 2508.18264"),
    Compressor("zoo-prune", zoo_prune.zoo_prune, at="input", paper="arXiv 2509.24837"),
    Compressor("trim", trim.trim, at="input", paper="arXiv 2409.10994"),
    Compressor("apet", apet.apet, at="input", paper="arXiv 2602.19870"),
    Compressor("otprune", otprune.otprune, at="input", paper="arXiv 2602.20205"),
    Compressor("uniform", uniform.uniform, at="input", reads_grid=True),
    Compressor("pooling", pooling.pooling, at="input", paper="arXiv 2406.20092", reads_grid=True),
    Compressor("evs", evs.evs, at="input", paper="arXiv 2510.14624", reads_grid=True),
    Compressor("vidcom2", vidcom2.vidcom2, at="input", paper="arXiv 2505.14454", reads_grid=True),
    Compressor("everest", everest.everest, at="input", paper="arXiv 2211.10636", reads_grid=True),
    Compressor("token-dynamics", token_dynamics.token_dynamics, at="input", paper="arXiv 2503.16980"),
    Compressor("pyramiddrop", pyramiddrop.pyramiddrop, at="decoder", paper="arXiv 2410.17247"),
    Compressor("sparsevlm", sparsevlm.sparsevlm, at="decoder", paper="arXiv 2410.04417"),
    Compressor("sparsevlm-plus", sparsevlm.sparsevlm_plus, at="decoder", paper="arXiv 2410.04417"),
    Compressor("dart", dart.dart, at="decoder", paper="arXiv 2502.11494"),
    Compressor("v2drop", v2drop.v2drop, at="decoder", paper="arXiv 2509.01552"),
)


class _Named(dict[str, Compressor]):
    def __missing__(self, name: str) -> Compressor:
        near = "".join(f", perhaps {found!r}" for found in difflib.get_close_matches(str(name).lower(), self, n=1))
        raise KeyError(f"no method is named {name!r}{near}; there are {', '.join(sorted(self))}")


COMPRESSORS: Mapping[str, Compressor] = MappingProxyType(
    _Named({row.name: dataclasses.replace(row, select=usual_promotion(row.select)) for row in _ROWS})
)
"""Every registered compressor by its name; read-only, in the order in which they are listed.

`COMPRESSORS[name](Tokens.of(values), keep=64, **evidence)` shrinks `values` [..., N, D] to 64 rows; `Compressor` has
shapes, dtypes and errors.

Raises:
    KeyError: No method has that name; the message lists all.

Source: the paper of each is its `paper`; the registry is this package's own.

Examples:
    >>> import jax.numpy as jnp
    >>> from tokencarve_jax import Tokens
    >>> left = COMPRESSORS["divprune"](Tokens.of(jnp.ones((2, 9, 4))), keep=3)
    >>> left.tokens.values.shape, COMPRESSORS["fastv"].evidence
    ((2, 3, 4), ('query_attention',))
"""
