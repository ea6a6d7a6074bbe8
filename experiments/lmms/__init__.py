"""A model for lmms-eval: `lmms-eval eval --model tokencarve_jax`. Only `plugin` and `model` need it installed."""
