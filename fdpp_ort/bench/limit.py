"""What memory allows: the bytes that a step must read, and what fits."""

from __future__ import annotations

import os
from pathlib import Path

from fdpp_ort.bench.cells import DECODE, Cell
from fdpp_ort.errors import FdppError
from fdpp_ort.generation.folder import ModelFolder
from fdpp_ort.library import core


class Limit:
    """Of the graph in `folder`, for a memory of `bandwidth` bytes/s, None where that is not known. memory_bytes: the
    device's."""

    def __init__(self, folder: Path, bandwidth: float | None, memory_bytes: int, new_tokens: int):
        _require_exporter()
        import onnx_ir as ir

        from fdpp_ort.export.traffic import traffic_of

        self.bandwidth, self.memory_bytes, self.new_tokens = bandwidth, memory_bytes, new_tokens
        graph = ir.load(ModelFolder.open(folder).model_file)
        self._traffic = lambda tokens: traffic_of(graph, tokens, None)
        if self._traffic(1) is None:
            raise FdppError(f"{folder}: the graph does not say how large its caches are")

    def bytes_read(self, cell: Cell) -> int | None:
        """By a decoding step: weights once, keys and values of every row. None for a prompt, which computes more than
        it reads."""
        if cell.phase != DECODE:
            return None
        traffic = self._traffic(cell.tokens)
        return traffic.weights + cell.batch * traffic.steps[-1].cache_bytes

    def seconds(self, cell: Cell) -> float | None:
        read = self.bytes_read(cell)
        return read / self.bandwidth if read is not None and self.bandwidth else None

    def misfit(self, cell: Cell) -> str:
        """Why the cell's weights and caches do not fit the device, or ""."""
        tokens = cell.tokens + (self.new_tokens if cell.phase == DECODE else 0)
        traffic = self._traffic(tokens)
        needed = traffic.weights + cell.batch * traffic.steps[-1].cache_bytes
        if needed <= self.memory_bytes:
            return ""
        return f"does not fit: {needed / 1e9:.1f} GB of weights and caches, {self.memory_bytes / 1e9:.1f} GB there"


def _require_exporter() -> None:
    """FdppError: the packages that read graphs are not there."""
    try:
        import fdpp_ort.export  # noqa: F401
    except ImportError as error:
        raise FdppError(
            f"fdpp-bench model reads graphs as fdpp-export does ({error}); pip install fdpp-ort[export]"
        ) from error


def device_memory(provider: str) -> int:
    """Bytes."""
    if provider == "cuda":
        return core().gpu_device(0)["memory_bytes"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_bandwidth(provider: str, asked: str | None) -> float | None:
    """Bytes/s of what `--bandwidth` names, or as the GPU's driver says. FdppError: no such GPU."""
    if asked is not None:
        _require_exporter()
        from fdpp_ort.export import ExportError, find_gpu

        try:
            return find_gpu(asked).bandwidth
        except ExportError as error:
            raise FdppError(f"--bandwidth: {error}") from error
    return (core().gpu_device(0)["memory_bandwidth"] or None) if provider == "cuda" else None
