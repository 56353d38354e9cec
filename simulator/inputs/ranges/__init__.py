"""Ranges of numbers, and sizes that must go together."""
