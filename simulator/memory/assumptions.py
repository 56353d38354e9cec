"""What a memory forecast must assume because no input file says it; every report prints them."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.units import si


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Named assumptions, each with its source.

    Parameters
    ----------
    context : CUDA context, handles and workspaces of libraries, NCCL channels [B] (assumed; 0.6 to 2 GB seen, 4.1 to
        6.4 GB with Megatron-Core's many groups: github.com/NVIDIA/Megatron-LM/pull/6429, 2026).
    slack : fragmentation of the caching allocator with expandable segments, share of activations and temporary memory
        (assumed; 0 to 0.1 seen).
    fp8_weights : under the FP8 recipe the rank keeps and gathers matrices in FP8 only; the high-precision copy is the
        sharded master (arXiv 2412.19437, section 3.3.1 and figure 6; DeepSeek's public profile casts no weights within
        the step).
    ema_on_gpu : an FP32 average of the weights, sharded as the master; DeepSeek keeps it on the CPU (section 3.2.3).
    share_mtp : MTP modules use the main model's embedding and head if these are on the same rank (section 3.2.3).
    nvl_tokens, rdma_tokens : receive queues of DeepEP's kernels per channel and peer [tokens], its defaults for 64
        ranks (github.com/deepseek-ai/DeepEP, deep_ep/buffer.py).
    receive_buffers : pipeline messages posted ahead per direction and stage (assumed).
    """

    context: float = 1.0e9
    slack: float = 0.03
    fp8_weights: bool = True
    ema_on_gpu: bool = False
    share_mtp: bool = True
    nvl_tokens: int = 288
    rdma_tokens: int = 128
    receive_buffers: int = 1

    def lines(self) -> list[str]:
        """Each in words."""
        matrices = "in FP8 only" if self.fp8_weights else "in BF16 in addition to FP8"
        return [
            *self._of_every_step(),
            f"matrices under DeepSeek's FP8 kept {matrices}",
            f"moving average of the weights on the {'GPU' if self.ema_on_gpu else 'CPU'}",
            f"MTP modules {'share embedding and head of their stage' if self.share_mtp else 'hold their own ends'}",
            f"DeepEP queues of {self.nvl_tokens} tokens over NVLink and {self.rdma_tokens} over RDMA",
            f"pipeline messages posted ahead per direction and stage {self.receive_buffers}",
        ]

    def serving_lines(self) -> list[str]:
        """Those that a serving step rests on."""
        return [*self._of_every_step(), "the largest op is added to the residual stream"]

    def _of_every_step(self) -> list[str]:
        return [
            f"context and libraries {si(self.context, 'B')}",
            f"slack of the allocator {self.slack:.0%} of activations and temporaries",
        ]
