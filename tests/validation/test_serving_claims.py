"""What DeepSeek says of its serving, next to what follows here."""

from __future__ import annotations

import pytest

from simulator.validation.serving.serving_claims import Day, all_to_all_bound, claims, markdown


@pytest.fixture(scope="module")
def found():
    return {one.statement: one for one in claims()}


def test_statements_that_follow_from_inputs_alone_agree(found):
    for start in (
        "Prefill on 32",
        "Of 16 experts",
        "Decode on 320",
        "What limits",
        "Attention in",
        "Nodes that a day's",
    ):
        mine = [one for name, one in found.items() if name.startswith(start)]
        assert mine
        assert mine[0].agrees, mine[0]


def test_a_drafted_token_gives_what_the_report_says_where_weights_are_waited_for(found):
    for acceptance in ("85%", "90%"):
        one = found[f"Tokens/s with one drafted token, {acceptance} accepted"]
        assert one.agrees
        few, _, many = one.ours.partition(" times, of 96 sequences ")
        assert 1.0 < float(many) < float(few) < 1.0 + float(acceptance.rstrip("%")) / 100


def test_the_bound_by_all_to_alls_by_hand():
    step = 2 * (3 * 32 * 9 * 7000) / 50e9  # two all-to-alls of a layer, 3 bytes an element
    assert all_to_all_bound(50e9, hidden=7000) == pytest.approx(step * 61)
    assert all_to_all_bound(50e9, hidden=7000) == pytest.approx(14.76e-3, rel=1e-3)
    assert all_to_all_bound(900e9, hidden=7000) == pytest.approx(0.82e-3, rel=1e-3)
    assert all_to_all_bound(100e9) == pytest.approx(all_to_all_bound(50e9) / 2)


def test_the_day_by_hand():
    day = Day()
    assert day.cost == pytest.approx(87_072)
    assert day.revenue == pytest.approx(562_027, rel=2e-4)
    assert day.revenue / day.cost - 1 == pytest.approx(5.45, abs=0.01)
    assert day.needed(day.prefill_node, day.decode_node) == pytest.approx(226.75, rel=1e-3)
    assert day.needed(2 * day.prefill_node, 2 * day.decode_node) == pytest.approx(113.4, rel=1e-3)


def test_what_does_not_agree_is_not_said_to(found):
    rates = [one for name, one in found.items() if name.startswith("Tokens/s of a")]
    for one in rates:
        published, ours = (float(text.replace(",", "")) for text in (one.published, one.ours))
        assert one.agrees == (abs(ours / published - 1) < 0.15)


def test_the_page_has_a_line_for_each(found):
    lines = markdown(list(found.values())).splitlines()
    assert len(lines) == 2 + len(found)
    assert all(line.count("|") == 7 for line in lines)
