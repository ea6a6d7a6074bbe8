"""The programs of docs/compose.md in public decoders, with tiny random weights, against forwards without a cache.

Needs `pip install --no-deps -r tests/public_models.txt`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.test_compose import CUT, METHODS, NEW, PROGRAMS, B, N, S, prompt
from tokencarve_jax import compress_sequence, visual_positions

pytestmark = pytest.mark.public

D, H, K, WIDTH, DEPTH, VOCABULARY = 32, 4, 2, 8, 4, 50


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder: how the page's program runs it, and its layers, for the reference."""

    prefill: Callable[..., Any]
    decode: Callable[..., Any]
    layers: list[Callable[..., Any]]  # each (x, positions, mask [B, Q, K]) -> x
    embed: Callable[..., Any]
    logits: Callable[..., Any]


def drawn(tree: Any) -> Any:
    """Weights at random in place of all, also of those that start at 0 or 1."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(5)
    values = [jnp.asarray(rng.normal(size=leaf.shape) / 6, jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, values)


@functools.cache
def nnx_model() -> Model:
    from tunix.models.llama3.model import Llama3, ModelConfig

    config = ModelConfig(
        num_layers=DEPTH,
        vocab_size=VOCABULARY,
        embed_dim=D,
        hidden_dim=2 * D,
        num_heads=H,
        head_dim=WIDTH,
        num_kv_heads=K,
        rope_theta=10_000,
        norm_eps=1e-6,
        weight_tying=False,
    )
    graph, state = nnx.split(Llama3(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, drawn(state))
    exec(PROGRAMS["nnx"], program := {})
    return Model(
        functools.partial(nnx.jit(program["prefill"], static_argnames=("method", "keep", "room")), model),
        functools.partial(nnx.jit(program["decode"]), model),
        [lambda x, positions, mask, layer=layer: layer(x, positions, None, mask)[1] for layer in model.layers],
        model.embedder.encode,
        lambda x: model.lm_head(model.final_norm(x)),
    )


@functools.cache
def linen_model() -> Model:
    from gemma import modules, transformer

    config = transformer.TransformerConfig(
        num_layers=DEPTH,
        num_embed=VOCABULARY,
        embed_dim=D,
        hidden_dim=2 * D,
        num_heads=H,
        head_dim=WIDTH,
        num_kv_heads=K,
        final_logit_softcap=None,
        use_post_attn_norm=False,
        use_post_ffw_norm=False,
        attention_types=(modules.AttentionType.GLOBAL,) * DEPTH,
    )
    model = transformer.Transformer(config)
    ids = jnp.zeros((B, S), int)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), ids, ids, None, jnp.ones((B, S, S), bool)))
    bound = model.bind(params)
    exec(PROGRAMS["linen"], program := {})
    prefill = jax.jit(functools.partial(program["prefill"], model), static_argnames=("method", "keep", "room"))
    return Model(
        functools.partial(prefill, params),
        functools.partial(jax.jit(functools.partial(program["decode"], model)), params),
        [lambda x, positions, mask, block=block: block(x, positions, None, mask)[1] for block in bound.blocks],
        bound.embedder.encode,
        lambda x: bound.embedder.decode(bound.final_norm(x)),
    )


@functools.cache
def scanned_model() -> Model:
    from gemma.modules import AttentionType, Block

    make = functools.partial(
        Block,
        num_heads=H,
        num_kv_heads=K,
        embed_dim=D,
        head_dim=WIDTH,
        hidden_dim=2 * D,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attn_type=AttentionType.GLOBAL,
        query_pre_attn_scalar=WIDTH**-0.5,
        transpose_gating_einsum=True,
    )
    block = make()

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, positions, mask):
            return make(name="block")(x, positions, None, mask)[1], None

    scan = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=(nn.broadcast,) * 2, length=DEPTH
    )
    x = jnp.zeros((B, S, D))
    params = drawn(jax.eval_shape(scan().init, jax.random.key(0), x, jnp.zeros((B, S), int), jnp.ones((B, S, S), bool)))
    params = params["params"]["block"]
    exec(PROGRAMS["scanned"], program := {})
    prefill = jax.jit(functools.partial(program["prefill"], block), static_argnames=("method", "keep", "room"))
    decode = jax.jit(functools.partial(program["decode"], block))

    def logits(x):  # the program ends with states, as a stack of layers does
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True))

    def prefilled(*args, **more):
        x, *rest = prefill(params, *args, **more)
        return logits(x), *rest

    def decoded(tokens, *rest):
        x, state = decode(params, table[tokens], *rest)
        return logits(x), state

    def layer(x, positions, mask, index):
        own = jax.tree.map(lambda weights: weights[index], params)
        return block.apply({"params": own}, x, positions, None, mask)[1]

    table = jnp.asarray(np.random.default_rng(6).normal(size=(VOCABULARY, D)), jnp.float32)
    return Model(
        prefilled,
        decoded,
        [functools.partial(layer, index=index) for index in range(DEPTH)],
        table.__getitem__,
        logits,
    )


def case(side: str) -> tuple[Any, ...]:
    """Embedded prompts, what of them is real, where their images are, and the tokens that follow."""
    visual, real, _, _ = prompt(side)
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    new = jnp.asarray(rng.integers(VOCABULARY, size=(B, NEW)))
    return x, jnp.asarray(real), visual_positions(visual, count=N, mask=real), new


@functools.cache
def uncut(model: Callable[[], Model], side: str) -> tuple[jax.Array, list[jax.Array]]:
    """What enters the layer of the cut, and each layer's own softmax: the last token's row, on average over heads."""
    x, real, _, _ = case(side)
    last = jnp.argmax(jnp.arange(S) * real, -1)
    positions, mask = jnp.maximum(real.cumsum(-1) - 1, 0), jnp.tri(S, dtype=bool) & real[:, None]
    looks, entered = [], []
    with pytest.MonkeyPatch.context() as patch:
        softmax = jax.nn.softmax
        patch.setattr(jax.nn, "softmax", lambda *args, **more: looks.append(softmax(*args, **more)) or looks[-1])
        for layer in model().layers:
            entered.append(x)
            x = layer(x, positions, mask)
    heads = [look.mean(axis=look.shape.index(H, 1)) for look in looks]  # [B, H, S, S] or [B, S, H, S]
    return entered[CUT], [jnp.stack([look[row, last[row]] for row in range(B)]) for look in heads]


@functools.cache
def masked(model: Callable[[], Model]) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(_masked, model()), static_argnames="side")


def _masked(model: Model, side: str, cut: Any) -> jax.Array:
    """Logits of the last token and the new ones [B, 1 + NEW, V]: one forward over all positions, nothing cached."""
    x, real, _, new = case(side)
    rows = jnp.arange(B)[:, None]
    stands = jnp.zeros((B, S + NEW), bool).at[rows, cut.kept].set(True).at[:, S:].set(True)
    places = jnp.concatenate([jnp.maximum(real.cumsum(-1) - 1, 0), real.sum(-1)[:, None] + jnp.arange(NEW)], 1)
    seen = jnp.tri(S + NEW, dtype=bool) & jnp.pad(real, [(0, 0), (0, NEW)], constant_values=True)[:, None]
    is_new = jnp.arange(S + NEW)[:, None] >= S
    x = jnp.concatenate([x, model.embed(new)], 1)
    for index, layer in enumerate(model.layers):
        if index == CUT:
            x = x.at[rows, cut.kept].set(cut.hidden)
        # Before the cut, the prompt sees all of itself, and what is new only what the cut will leave.
        x = layer(x, places, seen & (stands[:, None] | (~is_new & (index < CUT))))
    last = jnp.argmax(jnp.arange(S) * real, -1)
    return model.logits(jnp.concatenate([x[rows, last[:, None]], x[:, S:]], 1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [0.25, 1.0])
@pytest.mark.parametrize(
    ("model", "method"),
    [(model, method) for model in (nnx_model, linen_model) for method in METHODS]
    + [(scanned_model, method) for method in METHODS if method != "pyramiddrop"],  # asks for the next layer's attention
)
def test_prefill_and_eight_steps_equal_a_masked_forward(model, method, keep, side):
    """And what stands is what the method keeps when it is told what the layers' own softmax says."""
    x, real, places, new = case(side)
    logits, state, cut = model().prefill(x, real, places, method=method, keep=keep, room=NEW)
    steps = [logits]
    for step in range(NEW):
        logits, state = model().decode(new[:, step], cut.hidden.shape[1] + step, state)
        steps.append(logits)
    np.testing.assert_allclose(jnp.stack(steps, 1), masked(model)(side=side, cut=cut), rtol=0, atol=1e-5)

    entered, looks = uncut(model, side)
    told = {"query_attention": looks[CUT - 1], "next_attention": looks[CUT]}
    np.testing.assert_array_equal(cut.kept, compress_sequence(entered, places, method, keep=keep, **told).kept)
