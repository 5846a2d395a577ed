"""Conversion of weights: values, limits, and what does not fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from fdpp_ort.export import ExportError
from fdpp_ort.export.pack import as_words, packed_weight


def pack(values: list, dtype: ir.DataType) -> np.ndarray:
    """`values` as a float32 weight [1, N], packed to [N, 1] and flattened."""
    tensor = ir.Tensor(np.array([values], np.float32), name="w")
    packed = packed_weight(tensor, dtype, "w.packed")
    result = packed.numpy()
    assert result.shape == (len(values), 1) and result.flags.c_contiguous and packed.name == "w.packed"
    assert packed.nbytes == result.nbytes == len(packed.tobytes())
    return result[:, 0]


def test_float16_rounds_to_nearest_even() -> None:
    got = pack([1.0, 1 + 2**-11, 1 + 3 * 2**-11, -65504.0, 2**-24, 2**-26], ir.DataType.FLOAT16)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, np.array([1.0, 1.0, 1 + 2**-9, -65504.0, 2**-24, 0.0], np.float16))


def test_bfloat16_rounds_to_nearest_even() -> None:
    got = pack([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1e30, -70000.0], ir.DataType.BFLOAT16)
    assert got.dtype == ml_dtypes.bfloat16
    want = [1.0, 1.0, 1 + 2**-6, 1e30, -70000.0]
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2**-8)
    assert got[1] == 1.0 and got[2] == 1 + 2**-6


def test_float32_keeps_every_bit() -> None:
    values = [0.1, -0.0, np.nan, np.inf, 1e-42]
    np.testing.assert_array_equal(pack(values, ir.DataType.FLOAT).view(np.uint32), np.float32(values).view(np.uint32))


@pytest.mark.parametrize("value", [65505.0, -65505.0, 1e10])
def test_names_the_weight_that_does_not_fit_float16(value: float) -> None:
    with pytest.raises(ExportError, match=r"weight w reaches .* more than float16 holds \(65504\); try --weights bf16"):
        pack([0.0, value], ir.DataType.FLOAT16)


def test_what_is_not_finite_stays_so() -> None:
    got = pack([np.nan, np.inf, -np.inf, 1.0], ir.DataType.FLOAT16)
    np.testing.assert_array_equal(got, np.array([np.nan, np.inf, -np.inf, 1.0], np.float16))


def test_an_infinity_does_not_hide_a_large_weight() -> None:
    with pytest.raises(ExportError, match="weight w reaches 70000"):
        pack([np.nan, np.inf, 70000.0], ir.DataType.FLOAT16)


@pytest.mark.parametrize(("count", "shape"), [(24, (3, 2)), (24, (6,)), (21, (6,)), (1, (1,))])
def test_bytes_as_words(count: int, shape: tuple[int, ...]) -> None:
    values = np.arange(200, 200 + count).astype(np.uint8)
    words = as_words(ir.Tensor(values.reshape(1, count)), shape, "b.words")
    got = words.numpy()
    assert (got.dtype, got.shape, words.name) == (np.int32, shape, "b.words")
    padded = got.view(np.uint8).ravel()
    np.testing.assert_array_equal(padded[:count], values)
    assert not padded[count:].any() and padded.size - count < 4
