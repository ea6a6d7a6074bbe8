"""Vision-language models in Flax NNX that tokencarve_jax is composed into."""
