"""Fixtures of the exporter's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_models import decoder, save_folder

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
    path.write_bytes(Path(sys.executable).read_bytes()[:64])
    return path


@pytest.fixture
def library() -> str:
    """The op library of the installed package."""
    import fdpp_ort

    return fdpp_ort.library_path()
