"""Patch maps: what became of every patch of an image, recorded for pictures and for the report."""
