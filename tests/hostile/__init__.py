"""Hostile input of every kind, seeded: `python -m tests.hostile --cases=6000`."""
