"""Ranks of a serving step apart, each with its own sequences and experts: they go through the step in lock-step."""
