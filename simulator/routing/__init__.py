"""The gate: who is chosen, how many tokens each rank gets, and the bytes that follow."""
