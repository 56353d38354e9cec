"""Speculative decoding with an MTP module (DeepSeek-V3 section 5.4.3; the method is arXiv 2211.17192).

Every pass of the main model yields one certain token and judges one drafted token; the MTP module then drafts the next.
With acceptance p a pass yields 1 + p tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import Array, Run
from workloads.reference.init import Params, unit_shapes, units
from workloads.reference.layers.ends import logits_of
from workloads.reference.layers.mtp import mtp_trunk
from workloads.reference.model import SHARED, stage_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What greedy decoding produced and what it took."""

    tokens: list[int]
    passes: int  # of the main model
    drafted: int
    accepted: int

    @property
    def acceptance(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0


def speedup(acceptance: float, *, module_cost: float, verify_cost: float = 0.0) -> float:
    """Tokens per second against plain decoding: (1 + p) / (1 + c + v).

    `module_cost` c is the MTP module's time and `verify_cost` v that of judging one more token in a pass, both as
    shares of a plain pass of the main model. v is near 0 while decoding waits for memory, near 1 when it computes.
    """
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"acceptance {acceptance} must lie in 0..1")
    return (1.0 + acceptance) / (1.0 + module_cost + verify_cost)


def module_share(cfg: RefConfig, *, activated: bool) -> float:
    """An MTP module's weights (its output head included) over those of layers and head.

    With `activated` only the experts a token visits count: the ratio of compute. Without, all of them: the ratio of
    bytes read when every expert gets some token.
    """
    if not cfg.num_nextn_predict_layers:
        raise ValueError("the model has no MTP module: num_nextn_predict_layers is 0")
    head = cfg.hidden_size * cfg.vocab_size
    main = sum(_weights(cfg, u, activated) for u in units(cfg) if u.startswith("layers.")) + head
    return (_weights(cfg, "mtp.0", activated) + head) / main


Choose = Callable[[Array, int], int]  # logits [vocabulary] and the position to fill -> token


def likeliest(logits: Array, position: int) -> int:
    """Greedy choice."""
    del position
    return int(logits.argmax())


def sampler(seed: int, temperature: float = 1.0) -> Choose:
    """Sampling whose randomness belongs to the position, so that two ways of decoding can be compared."""

    def choose(logits: Array, position: int) -> int:
        noise = np.random.default_rng((seed, position)).gumbel(size=logits.shape)
        return int((logits / temperature + noise).argmax())

    return choose


def decode_plain(run: Run, params: Params, prompt: list[int], new: int, choose: Choose = likeliest) -> Decoded:
    """`new` tokens, one per pass of the main model."""
    tokens = list(prompt)
    for _ in range(new):
        _, logits = _main(run, params, tokens)
        tokens.append(choose(logits[-1], len(tokens)))
    return Decoded(tokens=tokens, passes=new, drafted=0, accepted=0)


def decode_speculative(run: Run, params: Params, prompt: list[int], new: int, choose: Choose = likeliest) -> Decoded:
    """The same tokens with one draft per pass; a draft is kept when the main model would have chosen it."""
    tokens = list(prompt)
    draft: int | None = None
    passes = drafted = accepted = 0
    while len(tokens) < len(prompt) + new:
        guess = [] if draft is None else [draft]
        states, logits = _main(run, params, tokens + guess)
        passes += 1
        tokens.append(choose(logits[len(tokens) - 1], len(tokens)))
        if guess:
            drafted += 1
            if tokens[-1] == draft:
                accepted += 1
                tokens.append(choose(logits[-1], len(tokens)))
        draft = _draft(run, params, states[:, : len(tokens) - 1], tokens)
    return Decoded(tokens=tokens[: len(prompt) + new], passes=passes, drafted=drafted, accepted=accepted)


def _main(run: Run, params: Params, tokens: list[int]) -> tuple[Array, Array]:
    """States [1, n, hidden] before the final norm, and logits [n, vocabulary]."""
    chain = [u for u in units(run.cfg) if u == "embed" or u.startswith("layers.")]
    padded = np.array([tokens + [0] * (1 + run.cfg.num_nextn_predict_layers)])  # labels, unused here
    states = stage_forward(run, params, chain, None, padded).state
    logits, _ = logits_of(run, params["head"], states)
    return states, logits[0]


def _draft(run: Run, params: Params, states: Array, tokens: list[int]) -> int:
    """The MTP module's token after the last one: from states [1, n - 1, hidden] and the tokens behind them."""
    weights = params["mtp.0"] | {name: params[owner][name] for name, owner in SHARED.items()}
    here = run.at(layer=run.cfg.num_hidden_layers)
    y, _, _ = mtp_trunk(here, weights, states, np.array([tokens[1:]]))
    logits, _ = logits_of(here, weights, y[:, -1:])
    return int(logits[0, -1].argmax())


def _weights(cfg: RefConfig, unit: str, activated: bool) -> float:
    share = cfg.num_experts_per_tok / cfg.experts if activated and cfg.n_routed_experts else 1.0
    shapes = unit_shapes(cfg, unit).items()
    return sum((share if name.startswith("moe.") else 1.0) * float(np.prod(shape)) for name, shape in shapes)
