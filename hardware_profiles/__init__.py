"""Hardware profiles: data files only, read by `simulator.inputs`."""
