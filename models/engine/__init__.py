"""Prompts in, tokens out: packing, the plan of cuts, the layer loop, prefill, decoding. Knows no family."""
