"""By how much a what-if changes each variant's step."""

from __future__ import annotations

from reports.views.variants import Outcome, Variant, what_if_change


def _outcome(schedule: str, what_if: str | None, step: float | None) -> Outcome:
    variant = Variant(job="a", varied=(("layout.schedule", schedule),), what_if=what_if)
    if step is None:
        return Outcome(variant=variant, error="no")
    return Outcome(variant=variant, result={"metrics": {"step_time_s": step}})


def test_it_is_against_the_same_variant_as_it_is() -> None:
    outcomes = [
        _outcome("1f1b", None, 2.0),
        _outcome("1f1b", "straggler", 2.5),
        _outcome("zb1p", None, 1.0),
        _outcome("zb1p", "straggler", 1.5),
        _outcome("zbv", None, None),
        _outcome("zbv", "straggler", 1.0),
        _outcome("gpipe", None, 1.0),
        _outcome("gpipe", "straggler", None),
    ]
    found = [what_if_change(outcomes, one) for one in outcomes]
    assert found == [None, 0.25, None, 0.5, None, None, None, None]
