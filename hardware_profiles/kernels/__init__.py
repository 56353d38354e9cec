"""Kernel parameters by GPU: data files only."""
