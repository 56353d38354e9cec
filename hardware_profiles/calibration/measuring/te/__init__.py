"""Transformer Engine, measured."""
