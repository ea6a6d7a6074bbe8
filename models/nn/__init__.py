"""What towers and decoders share: linear layers and activations, rotary embedding, attention."""
