"""FP8: the accumulator's width, promotion, and the granularity of scales (DeepSeek-V3 sections 3.3 and 3.5.2)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workloads.reference.claims.claim import Claim, percent
from workloads.reference.claims.plot import draw, labels, line, logarithmic
from workloads.reference.count import Array
from workloads.reference.fp8 import E4M3, E5M2, Format, accumulate, quantise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Errors = dict[str, list[float]]


def accumulation_errors(k: int, size: int, *, seed: int, positive: bool = False) -> tuple[float, float]:
    """Largest error over the RMS of the exact product, without and with promotion every 128 elements.

    The operands are FP8 already, so that only the sum is to blame; normal entries, or uniform in 0..1 if `positive`.
    """
    rng = np.random.default_rng((seed, k))
    make = rng.random if positive else rng.standard_normal
    a, b = (quantise(make((size, k)), None).dequantised() for _ in range(2))
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    rms = float(np.sqrt((exact**2).mean()))
    plain, promoted = (float(np.abs(accumulate(a, b.T, promote=n) - exact).max()) / rms for n in (None, 128))
    return plain, promoted


def accumulation(out: Path, *, quick: bool) -> list[Claim]:
    """Error by K with and without promotion."""
    ks, size = [128, 512, 1024, 2048, 4096, 8192][: 5 if quick else 6], 64 if quick else 128
    normal = [accumulation_errors(k, size, seed=0) for k in ks]
    positive = [accumulation_errors(k, size // 2, seed=0, positive=True) for k in ks]
    at = ks.index(4096)

    def panel(ax: "Axes") -> None:
        for i, (errors, what) in enumerate(((normal, "normal entries"), (positive, "entries in 0..1"))):
            line(ax, 2 * i, ks, [100 * e[0] for e in errors], f"{what}, never promoted")
            line(ax, 2 * i + 1, ks, [100 * e[1] for e in errors], f"{what}, promoted every 128")
        ax.axhline(2.0, color="black", linewidth=0.8)
        ax.annotate("published: nearly 2 % at K = 4096", (ks[0], 2.1), fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, [str(k) for k in ks])
        logarithmic(ax)
        labels(ax, "FP8 GEMMs with a 14-bit accumulator", "K [elements]", "largest error / RMS of result [%]")

    figure = draw(out / "fp8_accumulation.png", [panel])
    (plain, promoted), biased = normal[at], positive[at][0]
    return [
        Claim(
            key="fp8.accumulation",
            claim="FP8 GEMM, K = 4096, limited accumulation: maximum relative error",
            published="nearly 2 %",
            ours=f"{percent(plain, 1)}",
            source="DeepSeek-V3, 3.3.2",
            figure=figure,
            remark="Largest error over the RMS of the result, normal entries. By element the maximum has no "
            "bound, because some results nearly cancel; with all entries positive nothing cancels, every "
            f"truncation has the same sign, and the error is {percent(biased, 1)}. The report does not state which it "
            "used; of those tried, this is the definition that comes near its figure.",
            values=(("max_over_rms", plain), ("positive_max_over_rms", biased)),
            agrees=0.015 <= plain <= 0.03,
        ),
        Claim(
            key="fp8.promotion",
            claim="The same with promotion to FP32 every 128 elements",
            published="gone, no loss of accuracy",
            ours=f"{percent(promoted, 2)}",
            source="DeepSeek-V3, 3.3.2",
            figure=figure,
            remark=f"{plain / promoted:.0f} times smaller and no longer growing with K; what is left is the truncation "
            "within 128 elements, a tenth of FP8's own rounding.",
            values=(("max_over_rms", promoted),),
            agrees=promoted < plain / 5,
        ),
    ]


def outlier_error(x: Array, w: Array, tile: tuple[int, int] | None, form: Format) -> float:
    """Relative error of a token's result [hidden], mean over tokens, when only x is rounded to FP8."""
    exact = x @ w
    got = quantise(x, tile, form=form).dequantised() @ w
    return float((np.linalg.norm(got - exact, axis=1) / np.linalg.norm(exact, axis=1)).mean())


def granularity(out: Path, *, quick: bool) -> list[Claim]:
    """Error by scale granularity when a few activations are far larger than the rest."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((256, 1024)), rng.standard_normal((1024, 64 if quick else 256))
    where = rng.random(x.shape) < 2e-5  # a handful of elements in 2 % of the tokens
    sizes = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6]
    kinds: dict[str, tuple[tuple[int, int] | None, Format]] = {
        "per tensor, E4M3": (None, E4M3),
        "per tensor, E5M2": (None, E5M2),
        "128x128 blocks, E4M3": ((128, 128), E4M3),
        "1x128 tiles, E4M3": ((1, 128), E4M3),
    }
    errors: Errors = {
        name: [outlier_error(np.where(where, x * size, x), w, *kind) for size in sizes] for name, kind in kinds.items()
    }

    def panel(ax: "Axes") -> None:
        for i, (name, values) in enumerate(errors.items()):
            line(ax, i, sizes, [100 * v for v in values], name)
        ax.set_xscale("log")
        logarithmic(ax)
        labels(
            ax,
            "One scale for more elements suffers more from outliers",
            "outliers over other entries",
            "mean relative error of a token [%]",
        )

    figure = draw(out / "fp8_granularity.png", [panel])
    tensor, tile = errors["per tensor, E4M3"][-2], errors["1x128 tiles, E4M3"][-2]
    return [
        Claim(
            key="fp8.granularity",
            claim="Per-tensor scales are sensitive to outliers, 1x128 tiles are not",
            published="stated, no figure",
            ours=f"{percent(tensor, 0)} against {percent(tile, 1)}",
            source="DeepSeek-V3, 3.3.2",
            figure=figure,
            values=(("per_tensor", tensor), ("per_tile", tile)),
            agrees=tensor > 5 * tile,
            remark="Outliers 10^5 times the rest in 2 % of the tokens. E4M3's own range of 2^18 hides outliers of up "
            "to about 10^4 from a per-tensor scale: below that granularity makes no difference.",
        )
    ]
