"""Requests over time: arrivals, scheduling, KV cache blocks, replicas, and what users see."""
