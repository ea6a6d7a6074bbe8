"""TokenCarve for JAX."""
