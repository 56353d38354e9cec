"""Whole runs: phases of training, as TOML."""
