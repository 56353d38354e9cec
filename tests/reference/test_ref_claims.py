"""The claims page: what is fast enough to check in every run, and that a page holds every claim and figure."""

from pathlib import Path

import pytest

from workloads.reference.claims.claim import Claim
from workloads.reference.claims.page import CAPTIONS, HEADER, VERDICT, page
from workloads.reference.claims.pipeline import memory
from workloads.reference.claims.precision import accumulation, granularity
from workloads.reference.claims.routing import most_experts, node_limit
from workloads.reference.claims.training import training, verdict


@pytest.mark.parametrize("check", [accumulation, granularity, node_limit, memory])
def test_quick_claims_agree_and_draw(check: object, tmp_path: Path) -> None:
    assert callable(check)
    claims: list[Claim] = check(tmp_path, quick=True)
    for claim in claims:
        assert claim.agrees, f"{claim.key}: {claim.ours} against {claim.published}"
        assert claim.figure in CAPTIONS
        png = (tmp_path / claim.figure).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 5_000


@pytest.mark.parametrize(
    ("gap", "noise", "agrees"),
    [(0.001, 0.0006, True), (-0.004, -0.0006, False), (0.001, 0.0022, None), (-0.004, -0.0022, None)],
)
def test_a_difference_within_the_noise_is_no_verdict(gap: float, noise: float, agrees: bool | None) -> None:
    assert verdict(gap, noise) is agrees


@pytest.mark.slow
def test_the_quick_run_of_training_disagrees_with_nothing(tmp_path: Path) -> None:
    """Too few steps for a verdict on FP8 are no disagreement, and are said."""
    claims = {claim.key: claim for claim in training(tmp_path, quick=True)}
    assert all(claim.agrees is not False for claim in claims.values())
    assert claims["fp8.training"].agrees is None
    assert "too much for a verdict" in claims["fp8.training"].remark


def test_figures_repeat_byte_for_byte(tmp_path: Path) -> None:
    names = [memory(tmp_path / which, quick=True)[0].figure for which in "ab"]
    assert (tmp_path / "a" / str(names[0])).read_bytes() == (tmp_path / "b" / str(names[1])).read_bytes()


def test_page_shows_failures_plainly() -> None:
    def claim(agrees: bool | None, figure: str | None) -> Claim:
        return Claim(
            key="k",
            claim="C",
            published="2 %",
            ours="3 %",
            source="S",
            remark="R",
            values=(),
            agrees=agrees,
            figure=figure,
        )

    text = page([claim(True, "mtp.png"), claim(False, "mtp.png"), claim(None, None)])
    assert "| C | 2 % | 3 % | yes | S | R |" in text
    assert "| C | 2 % | 3 % | **no** | S | R |" in text
    assert "| not comparable |" in text
    assert text.count("](figures/mtp.png)") == 1


def test_nvlink_limits_beyond_thirteen_experts() -> None:
    assert 13 <= most_experts(500) <= 16


def test_the_page_in_docs_is_of_this_version() -> None:
    """Same head, every figure in its place, and nothing that disagrees."""
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "claims.md").read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    assert VERDICT[False] not in text
    for name, caption in CAPTIONS.items():
        assert f"## {caption}\n\n![{caption}](figures/{name})" in text
        assert (docs / "figures" / name).is_file()
