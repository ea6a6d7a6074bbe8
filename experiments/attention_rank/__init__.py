"""The parts of `python -m experiments.rank`: how much information attention adds after a cut, and whether it shows."""
