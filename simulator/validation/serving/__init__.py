"""Serving: steps that were measured, steps that others published, and what DeepSeek says of its own."""
