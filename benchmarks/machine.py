"""Where and with what a benchmark of this source tree ran: the head of every result file."""

from __future__ import annotations

from pathlib import Path

from fdpp_ort.bench import machine

ROOT = Path(__file__).resolve().parents[1]


def describe(packages: tuple[str, ...]) -> dict[str, object]:
    return machine.describe(packages, ROOT)
