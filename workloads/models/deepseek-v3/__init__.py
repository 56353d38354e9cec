"""Data only: config.json."""
