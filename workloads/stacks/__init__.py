"""Software stacks: TOML files only."""
