"""A results folder as one HTML page that holds all that it needs, and asks nobody for anything."""

from experiments.reports.html.rendering import FILE, render, write, write_board

__all__ = ["FILE", "render", "write", "write_board"]
