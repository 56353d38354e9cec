"""Measure DeepGEMM's FP8 kernels on one rested Hopper GPU, and write them as a calibration table.

    python -m hardware_profiles.calibration.measuring.measure_deepgemm OUT.csv [dense,contiguous,masked,wgrad] [seed]

As `measure_rested.py`, for the kernels of deepseek-ai/DeepGEMM (Python package `deep_gemm`): dense, grouped with
contiguous rows, grouped with masked rows, and weight gradients with FP32 accumulation. Seed 1 measures the shapes of
InferSim's H800 table, too, with the rows that each group had there. `expected` is the `expected_m` passed to a masked
GEMM; the library picks its tile by it, which the kernel's name shows.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial

import deep_gemm  # type: ignore[import-not-found]
import torch

from hardware_profiles.calibration.infersim import infersim
from hardware_profiles.calibration.measuring.measure_rested import V3, Call, Case, gemm_time, measure
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, fp8, ones
from simulator.ops import Gemm

SEED = int(sys.argv[3]) if len(sys.argv) > 3 else 1
COLUMNS = [
    *("op", "precision", "form", "impl", "m", "n", "k", "groups", "expected", "rows"),
    *("us", "us_min", "launches", "kernel"),
]
ALIGN = 128
"""Rows that each group of a contiguous GEMM is padded to, and rows or columns of a scale of the weight."""
HIDDEN = (2048, 3072, 4096, 5120, 6144, 7168, 8192)
TOKENS = (16, 32, 64, 128, 192, 256, 512, 768, 1024, 2048, 4096, 8192, 16384)


def aligned(scales: torch.Tensor) -> torch.Tensor:
    """Scales as the kernels read them: laid out beforehand, so that only the GEMM runs."""
    out: torch.Tensor = deep_gemm.get_mn_major_tma_aligned_tensor(scales)
    return out


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, device=DEVICE, dtype=dtype)


def integers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE, dtype=torch.int32)


def blocks(n: int) -> int:
    return -(-n // ALIGN)


def infersim_works(form: str) -> list[Gemm]:
    """GEMMs of InferSim's H800 table."""
    works = [sample.work[0] for sample in infersim() if sample.hardware == "h800"]
    return [work for work in works if isinstance(work, Gemm) and work.form == form]


def expert(rng: random.Random) -> tuple[int, int]:
    """(n, k) of one of an expert's two GEMMs."""
    hidden, inner = rng.choice(HIDDEN[:-1]), 256 * rng.randint(2, 16)
    return rng.choice(((2 * inner, hidden), (hidden, inner)))


def spread(rng: random.Random, mean: int, groups: int) -> list[int]:
    return [max(1, int(mean * rng.uniform(0.7, 1.3))) for _ in range(groups)]


def dense_shapes(count: int) -> Iterator[tuple[int, int, int]]:
    """(m, n, k) of linear layers, whole or one of a tensor-parallel group's, with few tokens and many."""
    rng = random.Random(SEED)
    for _ in range(count):
        hidden, tp = rng.choice(HIDDEN), rng.choice((1, 1, 2, 4))
        inner = int(hidden * rng.choice((2.6875, 3.5, 4.0)) / tp / ALIGN) * ALIGN
        pairs = [
            (hidden * 3 // tp, hidden),
            (hidden, hidden // tp),
            (2 * inner, hidden),
            (hidden, inner),
            (576, hidden),
        ]
        n, k = rng.choice(pairs)
        yield rng.choice(TOKENS), n // 64 * 64, k // ALIGN * ALIGN


def dense_call(m: int, n: int, k: int) -> Call:
    a, b, d = (fp8(m, k), aligned(ones(m, k // ALIGN))), (fp8(n, k), ones(blocks(n), k // ALIGN)), empty(m, n)
    return lambda: deep_gemm.fp8_gemm_nt(a, b, d, disable_ue8m0_cast=True)


def dense() -> Iterator[Case]:
    known = (
        [(w.m, w.n, w.k) for w in infersim_works("dense")] + [s for s in V3[:-2] if s[2] % ALIGN == 0]
        if SEED == 1
        else []
    )
    for m, n, k in dict.fromkeys((*known, *dense_shapes(100))):
        yield {"form": "dense", "m": m, "n": n, "k": k}, partial(dense_call, m, n, k), gemm_time(m, n, k)


def contiguous_call(rows: list[int], n: int, k: int) -> Call:
    layout = [value for i, r in enumerate(rows) for value in (*[i] * r, *[-1] * (-r % ALIGN))]
    m, groups = len(layout), len(rows)
    a, d = (fp8(m, k), aligned(ones(m, k // ALIGN))), empty(m, n)
    b = fp8(groups * n, k).view(groups, n, k), ones(groups, blocks(n), k // ALIGN)
    indices = integers(layout)
    return lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, indices, disable_ue8m0_cast=True)


def contiguous() -> Iterator[Case]:
    rng = random.Random(SEED)
    works = [(list(w.rows), w.n, w.k) for w in infersim_works("grouped")] if SEED == 1 else []
    while len(works) < 60:
        groups, mean = rng.choice((1, 2, 4, 8, 16, 32, 64)), rng.choice((64, 128, 256, 512, 1024, 2048, 4096, 8192))
        n, k = expert(rng)
        if 2.0 * groups * mean * n * k < 4e12 and groups * n * k < 8e9:
            works.append((spread(rng, mean, groups), n, k))
    for rows, n, k in works:
        labels = {
            "form": "grouped",
            "m": sum(rows),
            "n": n,
            "k": k,
            "groups": len(rows),
            "rows": " ".join(map(str, rows)),
        }
        yield labels, partial(contiguous_call, rows, n, k), gemm_time(sum(rows), n, k)


def masked_call(rows: list[int], expected: int, n: int, k: int) -> Call:
    groups, most = len(rows), -(-max(rows) // 256) * 256
    a = fp8(groups * most, k).view(groups, most, k), aligned(ones(groups, most, k // ALIGN))
    b = fp8(groups * n, k).view(groups, n, k), ones(groups, blocks(n), k // ALIGN)
    d, valid = empty(groups, most, n), integers(rows)
    return lambda: deep_gemm.m_grouped_fp8_gemm_nt_masked(a, b, d, valid, expected, disable_ue8m0_cast=True)


def masked() -> Iterator[Case]:
    rng = random.Random(SEED)
    works = [(list(w.rows), w.m, w.n, w.k) for w in infersim_works("masked")] if SEED == 1 else []
    while len(works) < 100:
        groups, mean = rng.choice((1, 2, 4, 8, 16, 32, 64, 128)), int(2 ** rng.uniform(2, 10.5))
        n, k = expert(rng)
        if groups * mean <= 32768 and groups * n * k < 8e9:
            works.append((spread(rng, mean, groups), mean, n, k))
    for rows, expected, n, k in works:
        labels = {"form": "masked", "m": round(sum(rows) / len(rows)), "n": n, "k": k, "groups": len(rows),
                  "expected": expected, "rows": " ".join(map(str, rows))}  # fmt: skip
        yield labels, partial(masked_call, rows, expected, n, k), 3e-5 + len(rows) * n * k / 2e12


def wgrad_call(m: int, n: int, k: int) -> Call:
    a, b = (fp8(m, k), aligned(ones(m, k // ALIGN))), (fp8(n, k), aligned(ones(n, k // ALIGN)))
    main = empty(m, n, dtype=torch.float32).zero_()
    return lambda: deep_gemm.fp8_gemm_nt(a, b, main, main, recipe=[1, 1, 128], disable_ue8m0_cast=True)


def wgrad() -> Iterator[Case]:
    known = [(n, k, m) for m, n, k in V3[:-2]] if SEED == 1 else []
    for m, n, k in (*known, *((n, k, m) for m, n, k in dense_shapes(60) if m >= 512)):
        yield {"form": "wgrad", "m": m, "n": n, "k": k}, partial(wgrad_call, m, n, k), gemm_time(m, n, k)


SECTIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "dense": dense, "contiguous": contiguous, "masked": masked, "wgrad": wgrad,
}  # fmt: skip


def cases(names: list[str]) -> list[Case]:
    """What is measured, with the labels that all rows share."""
    common = {"op": "gemm", "impl": "deepgemm", "groups": 1}
    return [
        (common | {"precision": "fp8_block_both" if labels["form"] == "wgrad" else "fp8_block"} | labels, make, guess)
        for name in names
        for labels, make, guess in SECTIONS[name]()
    ]


def main() -> None:
    path, names = sys.argv[1], sys.argv[2].split(",") if len(sys.argv) > 2 else list(SECTIONS)
    torch.manual_seed(1)
    with open(path, "w", newline="") as file:
        file.write(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, DeepGEMM, measure_deepgemm.py\n")
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for name in names:
            rows = measure(cases([name]))
            writer.writerows(rows)
            file.flush()
            print(f"{name}: {len(rows)} kernels", flush=True)


if __name__ == "__main__":
    main()
