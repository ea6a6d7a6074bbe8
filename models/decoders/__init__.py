"""Language decoders: embeddings to logits, layer by layer."""
