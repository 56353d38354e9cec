"""Profiles recorded by PyTorch: read, labelled, and held against the simulation of the same job."""

from simulator.profile.comparison import Comparison, compare
from simulator.profile.recording import Recording, read_recording

__all__ = ["Comparison", "Recording", "compare", "read_recording"]
