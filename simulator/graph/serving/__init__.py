"""Blocks in the form that serving runs: forward only, over a KV cache."""
