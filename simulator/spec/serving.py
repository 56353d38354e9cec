"""What a serving step works on: the `[serving]` table of a job, and what serving software does differently."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from random import Random
from statistics import NormalDist
from typing import Literal

from simulator.spec.model import ModelSpec

KvDtype = Literal["bf16", "fp8", "fp8_ds_mla"]
"""fp8_ds_mla: latents in FP8 with four FP32 scales, their rotary part in BF16: 656 B of a token and layer, not 576
(deepseek-ai/FlashMLA, README, 2025-09; vLLM's --kv-cache-dtype of that name)."""
ExpertWeights = Literal["recipe", "mxfp4"]
Fusion = Literal["latent_norms", "rope_write", "shared_expert", "reduce_norm", "reduce_norm_moe"]
"""What serving software fuses (`ServingStack.fused`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of lengths.

    Parameters
    ----------
    mean : mean [tokens].
    cv : standard deviation over the mean.
    shape : gamma (no negative lengths, a long tail) or uniform.
    """

    mean: int
    cv: float
    shape: Literal["gamma", "uniform"] = "gamma"

    def quantile(self, share: float) -> int:
        """The length that `share` of the sequences stay below [tokens].

        A gamma variate's follows Wilson and Hilferty (1931): its cube root is nearly normal.
        """
        if self.shape == "uniform":
            return max(0, round(self.mean * (1.0 + self.cv * sqrt(12.0) * (share - 0.5))))
        spread = self.cv**2 / 9.0
        root = max(0.0, 1.0 - spread + NormalDist().inv_cdf(share) * sqrt(spread))
        return max(0, round(self.mean * root * root * root))


Context = int | tuple[int, ...] | Lengths
"""Tokens cached of each sequence: the same for all, a list that they take in turn, or a distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One step of one attention-data-parallel rank (`tp` GPUs that share the heads).

    Parameters
    ----------
    sequences : running ones (decode) or prompts (prefill).
    tokens : new tokens of each.
    context : tokens cached of each before the step.
    kv_dtype : format of the KV cache; GEMMs of attention run in BF16.
    expert_weights : how the routed experts' weights are stored: as the recipe's GEMMs read them, or in MXFP4, which
        kernels widen to the recipe's format on their way to the tensor cores (gpt-oss, DeepSeek-V4).
    cuda_graphs : the step is replayed, so that the host's time to issue kernels does not count.
    two_batch_overlap : the sequences run as two microbatches, one of which computes while the other's tokens travel to
        and from the experts (DeepSeek-V3 report, arXiv 2412.19437, section 3.4).
    redundant_experts : slots that hold copies of routed experts, in each layer over all expert-parallel ranks.
    shared_slots : slots that hold copies of the shared expert, which the gate's choice then includes for every token
        (0: each rank holds it and runs it on its own tokens).
    mtp_depth : tokens that the MTP module drafts; a decode step verifies them together with the last token.
    mtp_acceptance : probability that a drafted token is accepted where the one before it was; one for all, or a list
        with one for each drafted token.
    prefill_tokens : tokens of a prompt that a decode step computes along with its sequences (chunked prefill).
    prefill_context : tokens of that prompt that were computed before.
    eplb : how experts are placed by their expected loads: hierarchically, globally, by whichever fits (on), not at all
        (off), or only where there are redundant experts (auto).
    ranks : whether a mean rank is simulated, which waits for the most loaded one of each layer, or each rank apart.
    idle_ranks : data-parallel ranks without sequences; they run dummies, and bring no tokens to the experts.
    seed : draw of the lengths that each rank has, where ranks are apart.
    tokens_cv : standard deviation of the prompt tokens of a rank over their mean, in prefill with ranks apart.
    """

    sequences: int
    tokens: int
    context: Context = 0
    kv_dtype: KvDtype = "bf16"
    expert_weights: ExpertWeights = "recipe"
    cuda_graphs: bool = True
    two_batch_overlap: bool = False
    redundant_experts: int = 0
    shared_slots: int = 0
    mtp_depth: int = 0
    mtp_acceptance: float | tuple[float, ...] = 0.85
    prefill_tokens: int = 0
    prefill_context: int = 0
    eplb: Literal["auto", "on", "off", "global", "hierarchical"] = "auto"
    ranks: Literal["mean", "apart"] = "mean"
    idle_ranks: int = 0
    seed: int = 0
    tokens_cv: float = 0.0

    @property
    def total_context(self) -> int:
        """Cached tokens of all sequences."""
        context, count = self.context, self.sequences
        if isinstance(context, int):
            return count * context
        if isinstance(context, Lengths):
            return count * context.mean
        whole, rest = divmod(count, len(context))
        return whole * sum(context) + sum(context[:rest])

    @property
    def mean_context(self) -> float:
        """Mean number of cached tokens of a sequence."""
        return self.total_context / self.sequences

    @property
    def longest_context(self) -> int:
        """Cached tokens of the longest sequence."""
        return self.context if isinstance(self.context, int) else max(contexts(self))

    @property
    def accepted(self) -> float:
        """Mean number of tokens that a decode step yields for a sequence: the certain ones and accepted drafts.

        A draft counts only if all before it were accepted: 1 + p1 + p1 p2 + ... (arXiv 2211.17192, section 2).
        """
        given = self.mtp_acceptance
        chances = (given,) * self.mtp_depth if isinstance(given, float) else given[: self.mtp_depth]
        total, chance = float(self.tokens), 1.0
        for each in chances:
            chance *= each
            total += chance
        return total


GOLDEN = 0.6180339887498949
"""Fractions of a circle by which consecutive sequences are spread over a distribution: any run of them covers it."""


@lru_cache(maxsize=1024)
def _spread(context: Context, sequences: int) -> tuple[int, ...]:
    if isinstance(context, int):
        return ()
    if isinstance(context, tuple):
        return tuple(context[at % len(context)] for at in range(sequences))
    places = sorted(range(sequences), key=lambda at: (at * GOLDEN) % 1.0)
    rank = {at: place for place, at in enumerate(places)}
    return tuple(context.quantile((rank[at] + 0.5) / sequences) for at in range(sequences))


def contexts(serving: Serving) -> tuple[int, ...]:
    """Cached tokens of each sequence; empty where one number says it for all."""
    return _spread(serving.context, serving.sequences)


def expert_slots(model: ModelSpec, serving: Serving) -> int:
    """Places of experts in a layer, over all expert-parallel ranks: experts, copies of them and of the shared one."""
    return model.n_routed_experts + serving.redundant_experts + serving.shared_slots


def sampled_contexts(serving: Serving, rank: int) -> tuple[int, ...]:
    """Cached tokens of the sequences of one data-parallel rank: drawn from the distribution, or from the list."""
    draw = Random(f"{serving.seed}/{rank}")
    context = serving.context
    if isinstance(context, int):
        return (context,) * serving.sequences
    if isinstance(context, tuple):
        return tuple(draw.choice(context) for _ in range(serving.sequences))
    least = 1e-9  # the quantile of an end would be infinite
    return tuple(context.quantile(draw.uniform(least, 1.0 - least)) for _ in range(serving.sequences))


REDUCED = 2048
"""Most tokens whose all-reduce is fused with what follows (sgl-project/sglang, layers/communicator.py, 2026)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStack:
    """What serving software does differently.

    `graph_gap`: time between two kernels of a CUDA graph on the GPU [s].
    `decode_attention`: whose kernels decode, where the hardware profile has them apart (`kernels.decode`). `gemm`:
    whose GEMMs run, likewise. `all_reduce`: whose kernels reduce over tensor-parallel ranks, a name in
    `fabric.all_reduce` of the hardware profile, or nccl. `masked`: decode runs the experts on a fixed number of rows
    each, masked (DeepGEMM); else on rows sorted by expert. `router_fused`: scores, top-k and weights of the gate are
    one kernel. `experts`: whose GEMMs run the experts where no all-to-all brings tokens, likewise; Triton's gather rows
    by themselves. `fused`: kernels that are one here:

    - latent_norms: the norms of the latents of queries and of keys (or both at once, on two streams);
    - rope_write: the rotary embedding, and the write of the new keys and values to the cache;
    - shared_expert: the shared expert is one of the experts' GEMM, which every token chooses (without all-to-alls and
      expert parallelism);
    - reduce_norm: an all-reduce of up to `REDUCED` tokens, and the residual and norm behind it; reduce_norm_moe: in
      models with experts only.

    `kv_budget`, `kv_share`: what an engine gives the KV cache before it runs (`simulator.memory.budget`):

    - none: what the step leaves;
    - static: weights and cache fill a share of what is free before the weights are loaded (SGLang);
    - total: all that runs fills a share of the whole memory (vLLM);
    - free: the cache fills a share of what is free after weights and activations (TensorRT-LLM).
    """

    graph_gap: float
    decode_attention: Literal["fa2", "fa3", "fa3_vllm", "flashmla", "flashinfer", "trtllm"]
    gemm: Literal["training", "library", "deepgemm"]
    all_reduce: Literal["nccl", "vllm", "sglang", "trtllm"]
    masked: bool
    router_fused: bool
    experts: Literal["library", "deepgemm", "triton", "cutlass"] = "library"
    fused: tuple[Fusion, ...] = ()
    kv_budget: Literal["none", "static", "total", "free"] = "none"
    kv_share: float = 1.0


def sampled_shares(serving: Serving, ranks: int) -> list[float]:
    """Tokens of the prompts of each data-parallel rank over the mean, drawn from a gamma distribution."""
    if not serving.tokens_cv:
        return [1.0] * ranks
    drawn = Random(f"{serving.seed}/tokens")
    shape = 1.0 / serving.tokens_cv**2
    shares = [drawn.gammavariate(shape, 1.0) for _ in range(ranks)]
    return [share * ranks / sum(shares) for share in shares]
