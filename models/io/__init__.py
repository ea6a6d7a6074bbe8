"""Weights on disk and on the hub: tables of names, safetensors, Orbax."""
