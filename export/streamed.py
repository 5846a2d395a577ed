"""Tensors that are computed while they are written, some rows at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from .errors import ExportError

# Rows of a piece: a weight's columns, from where they lie to where they are rows, then pass through the L2.
_ROWS = 64
# Builds a piece from the first of its rows and the one behind its last.
Piece = Callable[[int, int], np.ndarray]


class Streamed(ir.LazyTensor):
    """A tensor whose pieces, some rows each, are computed each time it is read; nothing of it stays in memory."""

    def __init__(
        self, pieces: Callable[[], Iterator[np.ndarray]], dtype: ir.DataType, shape: Sequence[int], name: str
    ) -> None:
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)
        self.pieces = pieces

    def _whole(self) -> ir.Tensor:
        values = np.concatenate(list(self.pieces())).reshape(self.shape.numpy())
        return ir.Tensor(values, dtype=self.dtype, name=self.name)

    def tofile(self, file) -> None:
        """Writes one piece after the other to the binary `file`."""
        for piece in self.pieces():
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)


def pieces_of(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """The values of `tensor`, some rows at a time."""
    if isinstance(tensor, Streamed):
        yield from tensor.pieces()
    else:
        yield read(tensor)


def row_ranges(rows: int, at_once: int = _ROWS) -> Iterator[tuple[int, int]]:
    """Where pieces of `rows` rows begin and end."""
    for start in range(0, rows, at_once):
        yield start, min(start + at_once, rows)


def rows_of(values: np.ndarray, start: int, stop: int, *, rows_first: bool) -> np.ndarray:
    """Rows `start` to `stop` of `values`, a matrix [N, K] if `rows_first` and otherwise its transpose; contiguous."""
    if rows_first:
        return np.ascontiguousarray(values[start:stop])
    # By way of a copy: columns that lie powers of two apart share few of the cache's lines.
    return np.ascontiguousarray(np.ascontiguousarray(values[:, start:stop]).T)


def read(tensor: ir.TensorProtocol) -> np.ndarray:
    """The values of `tensor`, mapped as long as they are in use (a mapping of the tensor's own would pile up).

    Raises ExportError for a file that ends early.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    shape = tensor.shape.numpy()
    if tensor.size == 0:
        return np.zeros(shape, tensor.dtype.numpy())
    try:
        values = np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
    except (ValueError, OverflowError) as error:
        raise ExportError(f"external data of {tensor.name} is truncated: {tensor.path} ended early") from error
    values._mmap.madvise(mmap.MADV_WILLNEED)
    return values
