"""A GEMM in pieces, overlapped with the tensor-parallel collective that it feeds or drains.

Transformer Engine's userbuffers (transformer_engine/common/comm_gemm_overlap/comm_gemm_overlap.cpp, 2026) run it so:
an all-gather goes round the ranks in a ring, and each part of the rows is multiplied as it arrives; a reduce-scatter in
a ring is the reverse, whose sums are made at the end; a reduce-scatter in a pipeline cuts the weight into four.

Pieces have streams of their own, which does not help: measured on one H200 under sustained load, a GEMM in pieces lasts
as long as these one after the other (`calibration/tables/h200_pieces.csv`: 1.02 to 1.20 times the whole in BF16, the
sum of the pieces' forecasts is off by 2.6 % of it; at the power limit it is the weight, read again for each piece, that
costs). The SMs that a pipeline leaves free cost nothing there (0.991 to 1.006 times the whole).
"""

from __future__ import annotations

from collections.abc import Sequence

SPLITS = 4
"""Pieces of a reduce-scatter in a pipeline (num_splits of Transformer Engine and of NeMo's configurations)."""


def ends(arrivals: Sequence[float], piece: float) -> list[float]:
    """When pieces of equal length end that run one after the other, none before it has arrived [s]."""
    found: list[float] = []
    for arrival in arrivals:
        found.append(max(arrival, found[-1] if found else 0.0) + piece)
    return found


def gathered(comm: float, piece: float, ranks: int) -> float:
    """Time of a GEMM in pieces and the all-gather that feeds it, of so many ranks in a ring [s].

    `comm`: the all-gather alone; `piece`: the GEMM over one rank's rows [s].
    """
    return ends([part * comm / (ranks - 1) for part in range(ranks)], piece)[-1]


def scattered(comm: float, piece: float, pieces: int, *, sent: int) -> float:
    """Time of a GEMM in so many pieces and of the reduce-scatter that drains it, which sends the first `sent` [s].

    `comm`: the collective alone; `piece`: one of the GEMM's pieces [s].
    """
    done = ends([0.0] * pieces, piece)
    return max(done[-1], ends(done[:sent], comm / sent)[-1])
