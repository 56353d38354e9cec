"""Models, jobs and software stacks: data files, read by `simulator.inputs`."""
