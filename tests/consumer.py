"""What a user of the published package may write: run, and read by `mypy --strict`, against the installed wheel."""

import jax
import jax.numpy as jnp

from tokencarve_jax import (
    COMPRESSORS,
    Budget,
    Carved,
    CarvedSequence,
    Compressed,
    Compressor,
    Selection,
    Tokens,
    carve,
    carve_sequence,
    last_query_attention,
    plan,
    visual_positions,
)


def loudest(tokens: Tokens, *, keep: int) -> Selection:
    """A method of one's own."""
    order = jnp.argsort(-jnp.abs(tokens.values).max(-1))
    return Selection(jnp.sort(order[..., :keep], axis=-1).astype(jnp.int32))


def main() -> None:
    """One call of each kind."""
    budget: Budget = plan(576, keep=0.222)
    tokens = jax.random.normal(jax.random.key(0), (2, 64, 16))
    carved: Carved = carve(tokens, jnp.ones((2, 64)), keep=0.25)
    left: Compressed = COMPRESSORS["divprune"](Tokens.of(tokens), keep=16)
    own: Compressed = Compressor("loudest", loudest)(Tokens.of(tokens), keep=4)
    hidden, is_image = jnp.ones((1, 12, 8)), (jnp.arange(12) > 3)[None]
    where, valid = visual_positions(is_image, count=8)
    attention: jax.Array = last_query_attention(jnp.ones((1, 2, 4)), jnp.ones((1, 12, 2, 4)))
    cut: CarvedSequence = carve_sequence(hidden, attention, where, keep=0.5, valid=valid)
    assert budget.kept == 128
    assert carved.tokens.shape == left.tokens.values.shape == (2, 16, 16)
    assert own.indices.shape == (2, 4)
    assert cut.hidden.shape == (1, 8, 8)


if __name__ == "__main__":
    main()
