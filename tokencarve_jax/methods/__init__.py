"""One file for each method: `select(tokens, *, keep, evidence ...) -> Selection`. The registry gives them names."""
