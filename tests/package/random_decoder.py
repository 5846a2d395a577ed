"""Decoders with random weights, as benchmarks/ makes them."""

from __future__ import annotations

from pathlib import Path

import fdpp_ort
from fdpp_ort.export import export_model


def make(random_decoders, folder: Path, name: str, dtype: str, block_size: int = 0, *, verify: bool = False):
    """The original and the exported folder of one of the named shapes, and the exporter's report. `random_decoders`:
    the fixture."""
    decoders, shapes = random_decoders
    original, exported = folder / "original", folder / "fdpp"
    decoders.write_folder(original, shapes.named_shape(name), dtype, block_size, cuda=dtype == "f16")
    return original, exported, export_model(original, exported, library=fdpp_ort.library_path(), verify=verify)
