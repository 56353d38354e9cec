"""What answers requests: continuous batching over a KV cache in blocks."""
