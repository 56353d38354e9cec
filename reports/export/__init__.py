"""Files that leave the program: saved results, traces, tables."""
