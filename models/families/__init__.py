"""Model families: config, module, table of weights, packing of prompts."""
