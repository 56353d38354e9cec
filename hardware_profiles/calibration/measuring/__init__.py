"""Scripts that measure kernels, links and the host on the GPUs they run on; each needs PyTorch."""
