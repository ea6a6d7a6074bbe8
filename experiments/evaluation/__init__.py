"""The parts of `python -m experiments.eval`: questions, the worker that asks them, and the run that writes answers."""
