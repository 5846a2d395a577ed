"""Fixtures of the exporter's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_models import decoder, save_folder
from support import PROPERTY, Verified, record

from fdpp_ort.export.report import ExportReport


@pytest.fixture
def report() -> ExportReport:
    """An empty report to fill."""
    return ExportReport("in", "out", "onnxruntime", "keep", "lazy")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A one-layer float32 decoder as onnxruntime-genai's builder writes it."""
    return save_folder(decoder(), tmp_path / "in")


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A file with an ELF header of this machine, for tests that copy the op library but do not load it."""
    path = tmp_path / "libfdpp_ort.so"
    header = bytearray(Path(sys.executable).read_bytes()[:64])
    header[40:48], header[58:62] = bytes(8), bytes(4)  # no table of sections
    path.write_bytes(header)
    return path


@pytest.fixture
def library() -> str:
    """The op library of the installed package."""
    import fdpp_ort

    return fdpp_ort.library_path()


@pytest.fixture
def verified(record_property) -> Verified:
    """verified(exporter, model): to be called when a test has found the export of that pair to be right."""
    return lambda exporter, model: record_property(PROPERTY, record(exporter, model))
