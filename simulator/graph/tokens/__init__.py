"""How tokens find their experts: the gate's kernels, the order of experts and back, and the way between ranks."""
