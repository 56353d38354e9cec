"""Reports for the terminal, one module a verb."""
