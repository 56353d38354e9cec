"""The parts of the reference model, each with its forward and backward pass."""
