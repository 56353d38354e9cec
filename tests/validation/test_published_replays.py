"""Benchmarks of others, replayed: the table is whole, and its figures are only compared with."""

from __future__ import annotations

from simulator.validation import validate
from simulator.validation.serving.published_replays import replay_rows


def test_the_table_names_every_figure_once_with_its_source() -> None:
    rows = replay_rows()
    assert len({row.id for row in rows}) == len(rows) > 150
    assert all(row.source and row.number for row in rows)
    assert all(row.end_to_end for row in rows)


def test_figures_of_one_benchmark_come_from_one_replay() -> None:
    found = validate(["Q.gpustack-*.qwen3-32b.vllm.217-201"], processes=1)
    assert {one.figure.quantity for one in found} == {"ttft_mean", "tpot_mean", "output_total"}
    assert all(one.use == "comparison" for one in found)
    assert all(one.predicted is not None and one.predicted > 0 for one in found)
    total = next(one for one in found if one.figure.quantity == "output_total")
    assert total.predicted is not None
    assert 0.3 < total.predicted / float(total.figure.value) < 3.0


def test_replays_are_asked_by_name_only() -> None:
    assert validate(["Q.nothing"]) == []
    assert not any(one.figure.section == "Q" for one in validate(["C.deepep*"]))
