"""Hostile input of every kind, seeded: `python -m tests.hostile --cases=5000`."""
