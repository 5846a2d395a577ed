"""Weights as numbers times scales, by rows: int8 and fp8 with a scale a row, int4 with one a block, by ONNX Runtime's
quantiser.

T is the weight's own element type, which scales have, too. Numbers of int8 and fp8 are the nearest for a scale as T
holds it; those of int4 are what MatMulNBits would hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .errors import ExportError
from .pack import unpaired
from .weight_format import WeightFormat

_KNOWN_TO_QUANTISER = {np.dtype(np.float16), np.dtype(np.float32)}


@dataclass(frozen=True)
class Quantised:
    """Some rows of a weight. numbers: int8 or float8e4m3fn [rows, K], or of int4 uint8 [rows, blocks * block_size / 2],
    two a byte in the order of k, the first in the low half. scales: T [rows], of int4 [rows, blocks]. zero_points: of
    int4, uint8 [rows, ceil(blocks / 2)], two a byte; None: 8 everywhere."""

    numbers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None = None


def quantise(columns: np.ndarray, form: WeightFormat, name: str) -> Quantised:
    """Of the weight `name` the `columns` T [K, rows], which make the result's rows. Raises ExportError for values that
    are not finite, and without ONNX Runtime for int4."""
    known = columns.dtype in _KNOWN_TO_QUANTISER and form.name == "int4"
    values = columns.astype(columns.dtype if known else np.float32)
    if not np.isfinite(values).all():
        raise ExportError(f"weight {name} has values that are not finite, which {form.name} does not hold")
    if form.name == "int4":
        return _int4(np.ascontiguousarray(values), columns.dtype, form)
    rows = np.ascontiguousarray(values.T)
    limit = 127.0 if form.name == "int8" else float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
    scales = (np.abs(rows).max(axis=1) / limit).astype(columns.dtype)
    divisors = scales.astype(np.float32)[:, None]
    numbers = np.divide(rows, divisors, out=np.zeros_like(rows), where=divisors > 0)
    np.clip(numbers, -limit, limit, out=numbers)  # where T has rounded the scale down
    if form.name == "int8":
        return Quantised(np.rint(numbers, out=numbers).astype(np.int8), scales)
    return Quantised(numbers.astype(ml_dtypes.float8_e4m3fn), scales)


def dequantise(rows: Quantised, form: WeightFormat, columns: int) -> np.ndarray:
    """The values that `rows` stand for: float32 [rows, columns]."""
    if form.name != "int4":
        return rows.numbers.astype(np.float32) * rows.scales.astype(np.float32)[:, None]
    count, blocks = rows.scales.shape
    numbers = unpaired(rows.numbers).view(np.int8).reshape(count, blocks, form.block_size)
    points = np.int8(8)
    if rows.zero_points is not None:
        points = unpaired(rows.zero_points).view(np.int8)[:, :blocks, None]
    return ((numbers - points) * rows.scales.astype(np.float32)[..., None]).reshape(count, -1)[:, :columns]


def _int4(columns: np.ndarray, scale_type: np.dtype, form: WeightFormat) -> Quantised:
    try:
        from onnxruntime.capi._pybind_state import quantize_matmul_4bits
    except ImportError as error:
        raise ExportError("int4 needs ONNX Runtime's quantiser; install onnxruntime") from error
    height, count = columns.shape
    blocks = -(-height // form.block_size)
    numbers = np.zeros((count, blocks, form.block_size // 2), np.uint8)
    scales = np.zeros((count, blocks), columns.dtype)
    points = np.zeros((count, -(-blocks // 2)), np.uint8)
    symmetric = not form.zero_points
    quantize_matmul_4bits(numbers, columns, scales, points, form.block_size, count, height, symmetric)
    return Quantised(numbers.reshape(count, -1), scales.astype(scale_type, copy=False), None if symmetric else points)
