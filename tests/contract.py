"""What a row of the registry cannot do; the rest of the contract is `tokencarve_jax.check`'s."""

import dataclasses
from collections.abc import Callable, Mapping

from tokencarve_jax import COMPRESSORS
from tokencarve_jax.samples import N

K = N // 3
# The registry, and how a row of it with groups, weights and text merges what it drops
ROWS = dict(COMPRESSORS) | {"merged": dataclasses.replace(COMPRESSORS["sparsevlm"], name="merged", rest="merged")}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a row of the registry cannot do; all that the table asks for."""

    least: Callable[[int], int] = lambda n: 1  # the fewest tokens that it can leave of n
    plain: bool = True  # a row that nothing joined stays as it is


LIMITS: Mapping[str, Limits] = {
    "tome": Limits(least=lambda n: (n + 1) // 2),  # every other token joins one of the rest
    "apet": Limits(plain=False),  # rows become other tokens
    "prumerge": Limits(plain=False),  # rows are sums over neighbours that may be in several
    "prumerge-plus": Limits(plain=False),
}


def limits(name):
    return LIMITS.get(name, Limits())


def keep(name, n=N, wanted=K):
    return max(wanted, limits(name).least(n))
