"""Input files: models, hardware profiles, stacks and jobs, by name or path, with `--set path=value` on top.

Every failure is an `InputError` of one line: `file: key: value: what would be right`.
"""

from simulator.inputs.architectures import Architecture
from simulator.inputs.files import Kind, list_names
from simulator.inputs.hf_config import ARCHITECTURES, IgnoredKey, Reading, ReadKey, register_architecture
from simulator.inputs.loaders import (
    load_hardware,
    load_job,
    load_model,
    load_scenario,
    load_stack,
    measured_gpu,
    override_job,
    read_model,
    settable_paths,
)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "IgnoredKey",
    "Kind",
    "ReadKey",
    "Reading",
    "list_names",
    "load_hardware",
    "load_job",
    "load_model",
    "load_scenario",
    "load_stack",
    "measured_gpu",
    "override_job",
    "read_model",
    "register_architecture",
    "settable_paths",
]
