"""The parts of `python -m experiments.reproduce`: the paper's sets, their tasks in lmms-eval, the run and its table."""
