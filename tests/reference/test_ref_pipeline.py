"""Schedules run for real: gradients equal the serial ones, live activations equal the closed forms."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.config import RefConfig
from workloads.reference.count import Run
from workloads.reference.init import Params, init_params
from workloads.reference.model import add_grads, as_tokens, loss_and_grads
from workloads.reference.parallel.pipeline import DeadlockError, run_schedule
from workloads.reference.parallel.schedules import Rows, dualpipe, dualpipev, gpipe, interleaved, one_f_one_b, zb1p
from workloads.reference.presets import tiny_gqa, tiny_v3


def serial(run: Run, params: Params, batches: list[np.ndarray]) -> tuple[float, Params]:
    total = 0.0
    grads: Params = {}
    for tokens in batches:
        losses, more = loss_and_grads(run, params, tokens)
        add_grads(grads, more)
        total += sum(losses.values())
    return total, grads


def assert_equal_step(cfg: RefConfig, rows: Rows, m: int) -> list[int]:
    run, params = Run(cfg=cfg), init_params(cfg, seed=1)
    batches = [as_tokens(cfg, seed=i, batch=1, length=4) for i in range(m)]
    total, expected = serial(run, params, batches)
    got = run_schedule(run, params, rows, batches)
    assert sum(got.losses.values()) == pytest.approx(total, rel=1e-12)
    assert got.grads.keys() == expected.keys()
    for unit, weights in expected.items():
        for name, dw in weights.items():
            np.testing.assert_allclose(
                got.grads[unit][name], dw, rtol=1e-9, atol=1e-12 * np.abs(dw).max(), err_msg=f"{unit} {name}"
            )
    return got.peak_live


P, M = 4, 8
CASES: dict[str, tuple[Callable[[int, int], Rows], int, list[int]]] = {
    "gpipe": (gpipe, P, [M] * P),
    "1f1b": (one_f_one_b, P, [P - r for r in range(P)]),
    "zb1p": (zb1p, P, [P] * P),
    "interleaved": (interleaved, 2 * P, [3 * P - 1 - 2 * r for r in range(P)]),
    "dualpipe": (dualpipe, P, [P + 1] * P),
    "dualpipev": (dualpipev, 2 * P, [2 * P + 1] * P),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("base", [tiny_v3(), tiny_gqa()], ids=["v3", "gqa"])
def test_gradients_equal_serial_and_peaks_equal_closed_form(name: str, base: RefConfig) -> None:
    generator, stages, peaks = CASES[name]
    cfg = replace(base, num_hidden_layers=stages)
    assert assert_equal_step(cfg, generator(P, M), M) == peaks


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 10), (6, 12), (8, 20)])
def test_dualpipe_at_other_sizes(p: int, m: int) -> None:
    cfg = replace(tiny_gqa(), num_hidden_layers=p)
    assert assert_equal_step(cfg, dualpipe(p, m), m) == [p + 1] * p


def test_zero_bubble_really_defers() -> None:
    """Where W comes later than I, the rank still holds the activation in between."""
    cfg = replace(tiny_gqa(), num_hidden_layers=2)
    rows = [["0F0", "0F1", "0I0", "0I1", "0W0", "0W1"], ["1F0", "1I0", "1F1", "1I1", "1W0", "1W1"]]
    assert assert_equal_step(cfg, rows, 2) == [2, 2]
    eager = [["0F0", "0I0", "0W0", "0F1", "0I1", "0W1"], ["1F0", "1B0", "1F1", "1B1"]]
    assert assert_equal_step(cfg, eager, 2) == [1, 1]


def test_messages_and_bytes_kept() -> None:
    cfg = replace(tiny_gqa(), num_hidden_layers=4)
    batches = [as_tokens(cfg, seed=i, batch=1, length=4) for i in range(8)]
    params = init_params(cfg, seed=1)
    one = run_schedule(Run(cfg=cfg), params, gpipe(4, 8), batches)
    two = run_schedule(Run(cfg=cfg), params, one_f_one_b(4, 8), batches)
    assert one.messages == two.messages == [8, 16, 16, 8]
    assert two.peak_kept[1] == pytest.approx(one.peak_kept[1] * 3 / 8)  # equal stages in the middle
    v = run_schedule(Run(cfg=cfg), params, dualpipev(2, 8), batches)
    assert v.messages == [16, 16]  # the V's turn from stage 1 to 2 stays on rank 1


def test_deadlock_names_what_each_rank_waits_for() -> None:
    cfg = replace(tiny_gqa(), num_hidden_layers=2)
    rows = [["0F0", "0B0", "0F1", "0B1"], ["1F1", "1B1", "1F0", "1B0"]]
    batches = [as_tokens(cfg, seed=i, batch=1, length=3) for i in range(2)]
    with pytest.raises(
        DeadlockError, match=r"(?s)rank 0, column 1: 0B0 waits for.*rank 1, column 0: 1F1 waits for 0F1"
    ):
        run_schedule(Run(cfg=cfg), init_params(cfg, seed=0), rows, batches)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["0F0"]], "needs either 0B0 or both"),
        ([["0F0", "0B0", "0W0"]], "needs either 0B0 or both"),
        ([["0F0", "0B0", "0F0"]], "more than once"),
        ([["0F0", "0B0"], ["1B0", "1F1", "1B1"]], "0F1 is missing"),
        ([["0F0"], ["0B0"]], "stands on rank 1, but its forward on rank 0"),
        ([["0F"]], "is no action"),
        ([["(0F0;0B0;0F1)"]], "is no action"),
        ([[]], "empty"),
    ],
)
def test_bad_schedules_are_named(rows: Rows, message: str) -> None:
    cfg = replace(tiny_gqa(), num_hidden_layers=2)
    with pytest.raises(ValueError, match=message):
        run_schedule(Run(cfg=cfg), init_params(cfg, seed=0), rows, [as_tokens(cfg, 0, 1, 3)])


def test_wrong_number_of_microbatches() -> None:
    cfg = replace(tiny_gqa(), num_hidden_layers=2)
    with pytest.raises(ValueError, match="1 microbatches given, the schedule runs 2"):
        run_schedule(Run(cfg=cfg), init_params(cfg, seed=0), gpipe(2, 2), [as_tokens(cfg, 0, 1, 3)])
