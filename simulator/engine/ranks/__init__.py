"""Every rank of an expert-parallel group with times of its own, as arrays over ranks in program order."""
