"""Weights in the layout that the kernels read, computed while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .dtypes import spec_name
from .errors import ExportError
from .streamed import Streamed, pieces_of, read, row_ranges, rows_of


def packed_weight(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str, *, rows_first: bool = False) -> Streamed:
    """`tensor` [K, N] as a tensor [N, K] of element type `dtype`, K contiguous.

    rows_first: it is [N, K] already. Reading raises ExportError if a finite weight does not fit `dtype`.
    """
    shape = tensor.shape.numpy() if rows_first else tensor.shape.numpy()[::-1]

    def pieces() -> Iterator[np.ndarray]:
        values = read(tensor)
        for start, stop in row_ranges(shape[0]):
            rows = rows_of(values, start, stop, rows_first=rows_first)
            _check_range(rows, dtype, tensor.name)
            yield rows.astype(dtype.numpy(), copy=False)

    return Streamed(pieces, dtype, shape, name)


def rounded(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> Streamed:
    """`tensor` with values that `dtype` has, in its own element type."""

    def pieces() -> Iterator[np.ndarray]:
        values = read(tensor)
        for start, stop in row_ranges(len(values)):
            yield values[start:stop].astype(dtype.numpy()).astype(values.dtype)

    return Streamed(pieces, tensor.dtype, tensor.shape.numpy(), name)


def packed_int4(tensor: ir.TensorProtocol, shape: tuple[int, int], name: str) -> Streamed:
    """4-bit numbers, two a byte in the order of k, as FdppFlatGemm's uint8 `shape`, [N, bytes]. `tensor` has as many
    rows, and bytes that are not wanted at their ends perhaps."""
    rows, width = shape

    def pieces() -> Iterator[np.ndarray]:
        numbers = read(tensor).reshape(rows, -1)
        for start, stop in row_ranges(rows):
            yield int4_words(numbers[start:stop, :width])

    return Streamed(pieces, ir.DataType.UINT8, shape, name)


def packed_int8(tensor: ir.TensorProtocol, shape: tuple[int, int], name: str) -> Streamed:
    """8-bit numbers around 128 as FdppFlatGemm's int8 `shape`, [N, K]; likewise."""
    rows, columns = shape

    def pieces() -> Iterator[np.ndarray]:
        numbers = read(tensor).reshape(rows, -1)
        for start, stop in row_ranges(rows):
            yield (numbers[start:stop, :columns] ^ np.uint8(128)).view(np.int8)

    return Streamed(pieces, ir.DataType.INT8, shape, name)


def int4_words(numbers: np.ndarray) -> np.ndarray:
    """4-bit numbers uint8 [rows, bytes], two a byte in the order of k, as FdppFlatGemm has them: of each eight the four
    of even k come first, then the four of odd k."""
    pairs = numbers.reshape(len(numbers), -1, 2, 2)  # words, halves of a word, two bytes: even and odd k in each
    first, second = pairs[..., 0], pairs[..., 1]
    words = np.stack((first & 15 | second << 4, first >> 4 | second & 0xF0), axis=-2)
    return words.reshape(len(numbers), -1)


def pairs(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 15 [rows, columns], two a byte, the first in the low half; an odd one is followed by 0."""
    numbers = np.pad(numbers.astype(np.uint8), ((0, 0), (0, numbers.shape[1] % 2)))
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def unpaired(bytes_: np.ndarray) -> np.ndarray:
    """Two numbers of each byte, the low half first: uint8 [rows, 2 * bytes]."""
    return np.stack((bytes_ & 15, bytes_ >> 4), axis=-1).reshape(len(bytes_), -1)


def reshaped(tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str) -> Streamed:
    """`tensor` with as many elements in another shape."""

    def pieces() -> Iterator[np.ndarray]:
        yield read(tensor).reshape(shape)

    return Streamed(pieces, tensor.dtype, shape, name)


def joined(tensors: Sequence[ir.TensorProtocol], name: str) -> Streamed:
    """The rows of all, one tensor's after the other's."""
    shape = (sum(tensor.shape.numpy()[0] for tensor in tensors), *tensors[0].shape.numpy()[1:])

    def pieces() -> Iterator[np.ndarray]:
        for tensor in tensors:
            yield from pieces_of(tensor)

    return Streamed(pieces, tensors[0].dtype, shape, name)


def as_words(tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str) -> Streamed:
    """The bytes of `tensor`, and zeros up to the end of the last word, as int32 numbers of `shape`."""

    def pieces() -> Iterator[np.ndarray]:
        values = read(tensor).view(np.uint8).ravel()
        if values.size % 4:
            values = np.pad(values, (0, -values.size % 4))
        yield values.view(np.int32).reshape(shape)

    return Streamed(pieces, ir.DataType.INT32, shape, name)


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of `graph`."""
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _check_range(values: np.ndarray, dtype: ir.DataType, name: str) -> None:
    if values.dtype == dtype.numpy():
        return
    limit = float(ml_dtypes.finfo(dtype.numpy()).max)
    finite = np.isfinite(values)
    largest = max(float(values.max(where=finite, initial=0)), -float(values.min(where=finite, initial=0)))
    if largest > limit:
        advice = "; try --weights bf16" if dtype == ir.DataType.FLOAT16 else ""
        raise ExportError(f"weight {name} reaches {largest:g}, more than {spec_name(dtype)} holds ({limit:g}){advice}")
