"""What became of every patch of some scenes, recorded by `eval` and `compare` for pictures and for the report."""
