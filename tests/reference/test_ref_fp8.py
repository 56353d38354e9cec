"""FP8 rounding, tiles, the short accumulator and its promotion."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from workloads.reference.fp8 import E4M3, E5M2, Format, accumulate, quantise, scaled_matmul
from workloads.reference.precision import Bf16, Fp8, bf16


def relative(got: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("form", "bits"), [(E4M3, 3), (E5M2, 2)], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_rounding_error_is_half_a_unit(form: Format, bits: int, power_of_two: bool) -> None:
    x = np.random.default_rng(0).uniform(0.1, 10.0, (64, 256))  # all within the format's normal range of one tile
    q = quantise(x, (1, 128), form=form, power_of_two=power_of_two)
    assert q.scales.shape == (64, 2)
    worst = np.abs(q.dequantised() / x - 1).max()
    assert 2.0 ** -(bits + 2) < worst <= 2.0 ** -(bits + 1) * 1.0001
    assert np.abs(q.values).max() <= form.largest
    np.testing.assert_array_equal(form.rounded(q.values), q.values)
    if power_of_two:
        assert (np.exp2(np.round(np.log2(q.scales))) == q.scales).all()
    else:
        assert (np.abs(q.values).reshape(64, 2, 128).max(axis=2) == form.largest).all()


def test_tiles_follow_the_matrix_and_edges_may_be_short() -> None:
    x = np.ones((130, 200))
    x[129, 199] = 1000.0
    q = quantise(x, (128, 128))
    assert q.scales.shape == (2, 2)
    assert q.scales[1, 1] == pytest.approx(1000 / 448)
    assert q.scales[0, 0] == pytest.approx(1 / 448)
    assert quantise(x, None).scales.shape == (1, 1)
    zero = quantise(np.zeros((2, 3)), (1, 128))
    assert not zero.dequantised().any()
    assert zero.scales.all()


def test_an_outlier_spoils_its_tile_only() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 512)) * 1e-3
    x[5, 7] = 1000.0
    others = np.ones(x.shape, bool)
    others[5, :128] = False
    per_tensor, per_tile = (quantise(x, tile).dequantised() for tile in (None, (1, 128)))
    assert relative(per_tile[others], x[others]) < 0.03
    assert relative(per_tensor[others], x[others]) > 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantise(np.array([[1.0, bad]]), (1, 128))
    with pytest.raises(ValueError, match="takes a matrix"):
        quantise(np.ones(3), None)
    with pytest.raises(ValueError, match="multiple of the instruction's 32"):
        accumulate(np.ones((1, 64)), np.ones((64, 1)), promote=48)


def test_accumulator_by_hand() -> None:
    """4 bits next to 8.0: the unit is 1, so 0.9 is dropped each time; exact and promoted sums keep it."""
    a = np.array([[8.0, 0, 0, 0, 0.9, 0, 0, 0]])
    ones = np.ones((8, 1))
    assert accumulate(a, ones, bits=4, step=4) == 8.0
    assert accumulate(a, ones, bits=4, step=4, promote=4) == pytest.approx(8.875)  # 0.9 itself in 4 bits
    assert accumulate(a, ones, bits=None, step=4) == pytest.approx(8.9)
    assert accumulate(-a, ones, bits=4, step=4) == -8.0  # towards zero


def test_many_bits_are_exact() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 8, 256)).astype(np.float32)
    np.testing.assert_allclose(accumulate(a, b.T, bits=45), a.astype(float) @ b.T, rtol=1e-6, atol=1e-5)


def test_promotion_removes_the_growth_with_k() -> None:
    rng = np.random.default_rng(0)
    errors = {}
    for k in (512, 4096):
        a, b = (quantise(rng.random((16, k)), None).dequantised() for _ in range(2))
        exact = accumulate(a, b.T, bits=None)
        errors[k] = [relative(accumulate(a, b.T, promote=n), exact) for n in (None, 128)]
    assert errors[4096][0] > 5 * errors[512][0]
    assert errors[4096][1] == pytest.approx(errors[512][1], rel=0.2)
    assert errors[4096][1] < errors[4096][0] / 20


def test_scaled_gemm_equals_the_gemm_of_the_values() -> None:
    rng = np.random.default_rng(2)
    a = quantise(rng.standard_normal((9, 300)) * np.exp(rng.standard_normal((9, 300))), (1, 128))
    b = quantise(rng.standard_normal((300, 200)), (128, 128))
    exact = a.dequantised().astype(float) @ b.dequantised()
    np.testing.assert_allclose(scaled_matmul(a, b, bits=None), exact, rtol=1e-4, atol=1e-4)
    assert relative(scaled_matmul(a, b), exact) < 2e-3


def test_precisions_round_what_they_say() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 64, 64)).astype(np.float32)
    exact = a.astype(float) @ b
    errors = [relative(p.matmul(a, b, op="attn.o", part="F"), exact) for p in (Bf16(), Fp8())]
    assert 1e-3 < errors[0] < 4e-3 < 0.02 < errors[1] < 0.05
    for op in ("head", "router.gate"):
        np.testing.assert_array_equal(Fp8().matmul(a, b, op=op, part="F"), Bf16().matmul(a, b, op=op, part="F"))
    y = Fp8().matmul(a, b, op="attn.o", part="I")
    np.testing.assert_array_equal(bf16(y), y)
    np.testing.assert_array_equal(bf16(np.array(1 + 2**-9)), np.float32(ml_dtypes.bfloat16(1 + 2**-9)))


@pytest.mark.parametrize(("form", "dtype"), [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2)])
def test_rounding_agrees_bit_for_bit_with_a_conversion(form: Format, dtype: Any) -> None:
    """Every number of the format, every middle between two, and their neighbours; then numbers of all sizes."""
    numbers = np.sort(np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32))
    numbers = numbers[np.isfinite(numbers)]
    middles = (numbers[1:] + numbers[:-1]) / 2
    exact = np.concatenate([numbers, middles])
    near = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))])
    rng = np.random.default_rng(0)
    sizes = np.exp2(rng.uniform(-30, 16, 100_000)) * rng.choice([-1.0, 1.0], 100_000)
    x = np.clip(np.concatenate([near, sizes]).astype(np.float32), -form.largest, form.largest)
    want = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(form.rounded(x).view(np.uint32), want.view(np.uint32))
