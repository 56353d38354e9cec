"""Profiles recorded by PyTorch: read, labelled, and held against the simulation of the same job."""

from simulator.errors import InputError
from simulator.profile.comparison import Comparison, compare
from simulator.profile.recording import Recording, read_recording
from simulator.profile.step import StepComparison, compare_step
from simulator.spec.scenario import Scenario

__all__ = ["Comparison", "Recording", "StepComparison", "compare", "compare_any", "compare_step", "read_recording"]


def compare_any(recording: Recording, scenario: Scenario, rank: int | None = None) -> Comparison | StepComparison:
    """Hold a profile against the job: the overlapped pair where the profile marks the phases of layers or the job
    overlaps pairs, and shows a whole pair; else a step, by phase and by family of kernels.

    `rank` is a pipeline rank and asks for the step. Raises InputError where nothing can be matched.
    """
    if rank is None and (recording.marks or scenario.stack.overlaps_pairs):
        try:
            return compare(recording, scenario)
        except InputError:
            pass
    return compare_step(recording, scenario, rank)
