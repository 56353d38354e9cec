"""Whole training steps that were measured: our own of mixture-of-experts models, and those of others."""
