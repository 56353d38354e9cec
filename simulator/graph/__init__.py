"""What runs: the ops of every block of a model, forward and backward, as values without durations."""
