"""Measurements of power and of what its limit does."""
