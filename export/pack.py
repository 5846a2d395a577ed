"""Weights in the layout that the kernels read, produced tensor by tensor while they are written."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .dtypes import spec_name
from .errors import ExportError


def packed_weight(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """`tensor` [K, N] as a tensor [N, K] of element type `dtype`, K contiguous, computed each time it is read.

    Reading raises ExportError if a finite weight does not fit `dtype`.
    """
    rows, columns = tensor.shape

    def pack() -> ir.Tensor:
        values = _read(tensor)
        _check_range(values, dtype, tensor.name)
        return ir.Tensor(np.ascontiguousarray(values.T.astype(dtype.numpy(), copy=False)), dtype=dtype, name=name)

    return ir.LazyTensor(pack, dtype, ir.Shape([columns, rows]), name=name)


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
