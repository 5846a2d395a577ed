"""Quantised weights: how far they are from what they were, by the layouts of fdpp/gemm.h, in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from fdpp_ort.export import ExportError
from fdpp_ort.export.quantised_weight import QuantisedWeight
from fdpp_ort.export.weight_format import WeightFormat

ROWS, COLUMNS = 700, 72  # more than one piece; int4's last block is not full
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
# Relative rounding of a scale, by its type.
ROUNDING = {np.float32: 2**-24, np.float16: 2**-11, ml_dtypes.bfloat16: 2**-8}


def weight(dtype: type) -> np.ndarray:
    """[N, K], rows of very different size, one of them zero."""
    random = np.random.default_rng(5)
    values = (
        random.standard_normal((ROWS, COLUMNS), np.float32) * np.geomspace(0.01, 10, ROWS, dtype=np.float32)[:, None]
    )
    values[7] = 0
    return values.astype(dtype)


def quantised(values: np.ndarray, form: str, *, rows_first: bool = True) -> dict[str, np.ndarray]:
    tensor = ir.Tensor(values if rows_first else np.ascontiguousarray(values.T), name="w")
    made = QuantisedWeight(tensor, WeightFormat.parse(form), rows_first=rows_first)
    return {name: tensor.numpy() for name, tensor in made.inputs("q").items()}


def by_rows(form: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Values [N, K] in float64."""
    scales = inputs["scales"].astype(np.float64)
    if not form.startswith("int4"):
        return inputs["B"].astype(np.float64) * scales[:, None]
    size = WeightFormat.parse(form).block_size
    words = inputs["B"].view("<u4")
    nibble = [k // 2 + k % 2 * 4 for k in range(8)]
    numbers = np.stack([words >> (4 * nibble[k]) & 15 for k in range(8)], -1).reshape(ROWS, -1, size).astype(np.float64)
    points = np.full(scales.shape, 8.0)
    if "zero_points" in inputs:
        bytes_ = inputs["zero_points"]
        points = np.stack((bytes_ & 15, bytes_ >> 4), -1).reshape(ROWS, -1)[:, : scales.shape[1]].astype(np.float64)
    return ((numbers - points[..., None]) * scales[..., None]).reshape(ROWS, -1)[:, :COLUMNS]


def each(scales: np.ndarray, form: str) -> np.ndarray:
    """The magnitude of the scale of each value [N, K]."""
    scales = np.abs(scales.astype(np.float64)).reshape(ROWS, -1)
    return scales.repeat(WeightFormat.parse(form).block_size or COLUMNS, axis=1)[:, :COLUMNS]


@pytest.mark.parametrize("dtype", TYPES)
def test_int8(dtype: type) -> None:
    values = weight(dtype)
    inputs = quantised(values, "int8")
    assert (inputs["B"].dtype, inputs["B"].shape) == (np.int8, (ROWS, COLUMNS))
    assert (inputs["scales"].dtype, inputs["scales"].shape) == (dtype, (ROWS,))
    assert inputs["B"].min() >= -127 and np.abs(inputs["B"][0].astype(int)).max() >= 126
    scale = each(inputs["scales"], "int8")
    # Half a step, and what a scale that was rounded down cuts off.
    bound = scale * (0.5 + 127 * ROUNDING[dtype]) * (1 + 1e-6)
    assert (np.abs(by_rows("int8", inputs) - values.astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_fp8(dtype: type) -> None:
    values = weight(dtype)
    inputs = quantised(values, "fp8")
    assert (inputs["B"].dtype, inputs["scales"].shape) == (ml_dtypes.float8_e4m3fn, (ROWS,))
    want = values.astype(np.float64)
    # Three bits behind the leading one; below 2^-6 steps of 2^-9; the cut as above.
    bound = np.maximum(np.abs(want) * (2**-4 + ROUNDING[dtype]), each(inputs["scales"], "fp8") * 2**-10) * (1 + 1e-6)
    assert (np.abs(by_rows("fp8", inputs) - want) <= bound).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", ["int4:16", "int4", "int4:128", "int4:16:zero-points", "int4:64:zero-points"])
def test_int4(form: str, dtype: type) -> None:
    values = weight(dtype)
    inputs = quantised(values, form)
    size = WeightFormat.parse(form).block_size
    blocks = -(-COLUMNS // size)
    assert (inputs["B"].dtype, inputs["B"].shape) == (np.uint8, (ROWS, blocks * size // 2))
    assert (inputs["scales"].dtype, inputs["scales"].shape) == (dtype, (ROWS, blocks))
    assert ("zero_points" in inputs) == form.endswith("zero-points")
    want, scale = values.astype(np.float64), each(inputs["scales"], form)
    error = np.abs(by_rows(form, inputs) - want)
    rounded = 16 * ROUNDING[dtype]
    # Half a step; where the largest of a block has the other sign, or a zero point was rounded, its counterpart is cut.
    assert (error <= scale * (1 + rounded) * (1 + 1e-6)).all()
    inside = np.abs(want) <= 7 * scale
    if "zero_points" not in inputs:
        assert (error <= scale * (0.5 + rounded) * (1 + 1e-6))[inside].all() and inside.mean() > 0.8


@pytest.mark.parametrize("form", ["int8", "fp8", "int4:32", "int4:32:zero-points"])
def test_either_way_round(form: str) -> None:
    values = weight(np.float32)
    first, second = (quantised(values, form, rows_first=rows_first) for rows_first in (True, False))
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name], err_msg=name)


@pytest.mark.parametrize("form", ["int8", "fp8", "int4:32", "int4:32:zero-points"])
@pytest.mark.parametrize("rows_first", [True, False])
def test_values_are_those_of_the_layout(form: str, rows_first: bool) -> None:
    values = weight(np.float32)
    tensor = ir.Tensor(values if rows_first else np.ascontiguousarray(values.T), name="w")
    stored = QuantisedWeight(tensor, WeightFormat.parse(form), rows_first=rows_first).values("w.stored").numpy()
    want = by_rows(form, quantised(values, form)).astype(np.float32)
    np.testing.assert_array_equal(stored if rows_first else stored.T, want)


def test_scales_are_the_same_whenever_they_are_read() -> None:
    made = QuantisedWeight(ir.Tensor(weight(np.float32), name="w"), WeightFormat("int4", 32, True), rows_first=True)
    inputs = made.inputs("q")
    for name in ("scales", "zero_points"):
        before = inputs[name].numpy()
        inputs["B"].numpy()
        for _ in range(2):  # kept, and computed again
            np.testing.assert_array_equal(inputs[name].numpy(), before)


@pytest.mark.parametrize("form", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_names_the_weight_that_is_not_finite(form: str, value: float) -> None:
    values = weight(np.float32)
    values[200, 3] = value
    with pytest.raises(ExportError, match="weight w has values that are not finite"):
        quantised(values, form)
