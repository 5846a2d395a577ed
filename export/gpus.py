"""Memory bandwidth of GPUs by their makers' data sheets, for the limit that the report states."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ExportError

# GB/s.
DATASHEETS = {
    "B200": 8000,
    "H200": 4800,
    "H100 SXM": 3350,
    "H100 PCIe": 2000,
    "A100 80GB": 2039,
    "A100 40GB": 1555,
    "L40S": 864,
    "L4": 300,
    "A10": 600,
    "T4": 320,
    "RTX 5090": 1792,
    "RTX 4090": 1008,
    "RTX 3090": 936,
    "MI300X": 5300,
    "MI210": 1638,
    "RX 7900 XTX": 960,
}


@dataclass(frozen=True)
class Gpu:
    """bandwidth: of its memory, bytes/s."""

    name: str
    bandwidth: float


def find_gpu(text: str) -> Gpu:
    """By a name of DATASHEETS, in any case and with or without spaces, or by a bandwidth in GB/s.

    Raises ExportError for anything else.
    """
    for name, bandwidth in DATASHEETS.items():
        if _plain(name) == _plain(text):
            return Gpu(name, bandwidth * 1e9)
    try:
        bandwidth = float(text)
    except ValueError:
        bandwidth = 0.0
    if not 0 < bandwidth < float("inf"):
        raise ExportError(f"GPU {text!r} is not known; expected GB/s or one of {', '.join(DATASHEETS)}")
    return Gpu(f"a GPU of {bandwidth:g} GB/s", bandwidth * 1e9)


def _plain(name: str) -> str:
    return name.replace(" ", "").casefold()
