"""Writes the graph and its weights, a few tensors at a time."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from .progress import Progress

_STEP = "writing weights"
# Smaller tensors lie in the .onnx file itself.
_INLINE_BYTES = 1024
# Weights of this size start on a page: ONNX Runtime maps them, and the kernels then read aligned rows.
_ALIGNED_BYTES = 64 * 1024
_PAGE = 4096
# Tensors under way at the same time: twice as many as processors, since some wait for the disk or for others whose
# scales they are. What they come from may be in memory.
_MOST_AT_ONCE = 8


def write_model(model: ir.Model, path: Path, progress: Progress | None) -> None:
    """Writes `model` to `path` and its weights to `path`.data."""
    total = weight_bytes(model)
    done = 0

    def on_tensor(tensor: ir.TensorProtocol, _: object) -> None:
        nonlocal done
        if progress is not None:
            progress(_STEP, done, total)
        done += tensor.nbytes

    ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=_INLINE_BYTES,
        callback=on_tensor,
        alignment=_PAGE,
        align_threshold=_ALIGNED_BYTES,
        max_workers=min(_MOST_AT_ONCE, 2 * len(os.sched_getaffinity(0))),
    )
    if progress is not None:
        progress(_STEP, total, total)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(value.const_value.nbytes for graph in model.graphs() for value in graph.initializers.values())
