"""The parts of `python -m experiments.compare`: cells, the worker that measures them, the run, its tables and plot."""
