"""Weights in the layout that the kernels read, produced tensor by tensor while they are written."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .dtypes import spec_name
from .errors import ExportError


def packed_weight(
    tensor: ir.TensorProtocol, dtype: ir.DataType, name: str, *, rows_first: bool = False
) -> ir.LazyTensor:
    """`tensor` [K, N] as a tensor [N, K] of element type `dtype`, K contiguous, computed each time it is read.

    rows_first: it is [N, K] already. Reading raises ExportError if a finite weight does not fit `dtype`.
    """
    rows, columns = tensor.shape if rows_first else tensor.shape[::-1]

    def pack() -> ir.Tensor:
        values = _read(tensor)
        _check_range(values, dtype, tensor.name)
        values = values if rows_first else values.T
        return ir.Tensor(np.ascontiguousarray(values.astype(dtype.numpy(), copy=False)), dtype=dtype, name=name)

    return ir.LazyTensor(pack, dtype, ir.Shape([rows, columns]), name=name)


def packed_int4(tensor: ir.TensorProtocol, rows: int, name: str) -> ir.LazyTensor:
    """MatMulNBits' 4-bit numbers of `rows` rows, two a byte in the order of k, as FdppFlatGemm's uint8 [rows, bytes].

    Of each eight numbers the four of even k come first, then the four of odd k; computed each time it is read.
    """

    def pack() -> ir.Tensor:
        pairs = _read(tensor).reshape(rows, -1, 2, 2)  # words, halves of a word, two bytes: even and odd k in each
        first, second = pairs[..., 0], pairs[..., 1]
        words = np.stack((first & 15 | second << 4, first >> 4 | second & 0xF0), axis=-2)
        return ir.Tensor(words.reshape(rows, -1), dtype=ir.DataType.UINT8, name=name)

    return ir.LazyTensor(pack, ir.DataType.UINT8, ir.Shape([rows, tensor.size // rows]), name=name)


def reshaped(tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str) -> ir.LazyTensor:
    """`tensor` with as many elements in another shape, read when it is written."""

    def reshape() -> ir.Tensor:
        return ir.Tensor(_read(tensor).reshape(shape), dtype=tensor.dtype, name=name)

    return ir.LazyTensor(reshape, tensor.dtype, ir.Shape(shape), name=name)


def joined(tensors: Sequence[ir.TensorProtocol], name: str) -> ir.LazyTensor:
    """The rows of all, one tensor's after the other's, computed each time they are read."""
    rest = tensors[0].shape.numpy()[1:]
    shape = ir.Shape([sum(tensor.shape.numpy()[0] for tensor in tensors), *rest])

    def join() -> ir.Tensor:
        values = np.concatenate([_read(tensor) for tensor in tensors])
        return ir.Tensor(values, dtype=tensors[0].dtype, name=name)

    return ir.LazyTensor(join, tensors[0].dtype, shape, name=name)


def as_words(tensor: ir.TensorProtocol, shape: tuple[int, ...], name: str) -> ir.LazyTensor:
    """The bytes of `tensor`, and zeros up to the end of the last word, as int32 numbers of `shape`."""

    def pack() -> ir.Tensor:
        values = _read(tensor).view(np.uint8).ravel()
        if values.size % 4:
            values = np.pad(values, (0, -values.size % 4))
        words = values.view(np.int32)
        return ir.Tensor(words.reshape(shape), name=name)

    return ir.LazyTensor(pack, ir.DataType.INT32, ir.Shape(shape), name=name)


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of `graph`."""
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _read(tensor: ir.TensorProtocol) -> np.ndarray:
    """The values of `tensor`, in memory that is given back once they are dropped (a mapping would pile up)."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    values = np.fromfile(tensor.path, dtype=tensor.dtype.numpy(), count=tensor.size, offset=tensor.offset or 0)
    if values.size != tensor.size:
        raise ExportError(f"external data of {tensor.name} is truncated: {tensor.path} ended early")
    return values.reshape(tensor.shape.numpy())


def _check_range(values: np.ndarray, dtype: ir.DataType, name: str) -> None:
    if values.dtype == dtype.numpy():
        return
    limit = float(ml_dtypes.finfo(dtype.numpy()).max)
    finite = np.isfinite(values)
    largest = max(float(values.max(where=finite, initial=0)), -float(values.min(where=finite, initial=0)))
    if largest > limit:
        advice = "; try --weights bf16" if dtype == ir.DataType.FLOAT16 else ""
        raise ExportError(f"weight {name} reaches {largest:g}, more than {spec_name(dtype)} holds ({limit:g}){advice}")
