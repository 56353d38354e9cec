"""Measuring scripts that need torchao."""
