"""Jobs: TOML files only."""
