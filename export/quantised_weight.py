"""A weight that becomes numbers and scales while these are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from .pack import int4_words
from .quantise import Quantised, dequantise, quantise
from .streamed import Streamed, read, row_ranges
from .weight_format import WeightFormat

# Of a piece: ONNX Runtime's quantiser shares them out to threads of its own, which it starts anew each time.
_INT4_ROWS = 512


class QuantisedWeight:
    """`tensor` [K, N], or [N, K] if `rows_first`, in the quantised format `form`."""

    def __init__(self, tensor: ir.TensorProtocol, form: WeightFormat, *, rows_first: bool) -> None:
        self._tensor, self._form, self._rows_first = tensor, form, rows_first
        self._rows, self._columns = tensor.shape.numpy() if rows_first else tensor.shape.numpy()[::-1]
        self._lock = threading.Lock()
        self._kept: dict[str, np.ndarray] = {}

    def inputs(self, name: str) -> dict[str, Streamed]:
        """FdppFlatGemm's B, scales and, if there are any, zero_points, called `name`, `name`.scales and so on."""
        rows, columns, form, original = self._rows, self._columns, self._form, self._tensor.dtype
        blocks = -(-columns // form.block_size) if form.block_size else None
        width = columns if blocks is None else blocks * form.block_size // 2
        kinds = {
            "B": (self._numbers, form.dtype(original), (rows, width)),
            "scales": (partial(self._rest, "scales"), original, (rows,) if blocks is None else (rows, blocks)),
        }
        if form.zero_points:
            kinds["zero_points"] = (partial(self._rest, "zero_points"), ir.DataType.UINT8, (rows, -(-blocks // 2)))
        return {
            kind: Streamed(pieces, dtype, shape, name if kind == "B" else f"{name}.{kind}")
            for kind, (pieces, dtype, shape) in kinds.items()
        }

    def values(self, name: str) -> Streamed:
        """What the weight has become, in its original layout and element type."""
        dtype = self._tensor.dtype.numpy()

        def pieces() -> Iterator[np.ndarray]:
            rows = np.concatenate([dequantise(q, self._form, self._columns).astype(dtype) for q in self._quantised()])
            yield rows if self._rows_first else np.ascontiguousarray(rows.T)

        return Streamed(pieces, self._tensor.dtype, self._tensor.shape.numpy(), name)

    def _quantised(self) -> Iterator[Quantised]:
        values = read(self._tensor)
        columns = values.T if self._rows_first else values
        pieces = row_ranges(self._rows, _INT4_ROWS) if self._form.name == "int4" else row_ranges(self._rows)
        for start, stop in pieces:
            yield quantise(columns[:, start:stop], self._form, self._tensor.name)

    def _numbers(self) -> Iterator[np.ndarray]:
        # What is written next waits, and need not quantise again.
        with self._lock:
            rest: dict[str, list[np.ndarray]] = {}
            for rows in self._quantised():
                rest.setdefault("scales", []).append(rows.scales)
                if rows.zero_points is not None:
                    rest.setdefault("zero_points", []).append(rows.zero_points)
                yield int4_words(rows.numbers) if self._form.name == "int4" else rows.numbers
            self._kept = {name: np.concatenate(pieces) for name, pieces in rest.items()}

    def _rest(self, name: str) -> Iterator[np.ndarray]:
        """Scales or zero points, once as they were kept."""
        with self._lock:
            kept = self._kept.pop(name, None)
        if kept is not None:
            yield kept
            return
        for rows in self._quantised():
            yield getattr(rows, name)
