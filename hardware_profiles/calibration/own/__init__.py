"""A GPU of one's own: measure it, fit it."""
