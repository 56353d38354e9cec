"""Samples from tables of the kernels of whole layers."""
