"""The op library that is copied beside the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdpp_ort.export import ExportError, export_model


def refused(folder: Path, library: Path | None, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_model(folder, folder.parent / "out", verify=False, library=library)
    assert not (folder.parent / "out").exists()


def test_none(model_folder: Path) -> None:
    refused(model_folder, None, "needs the op library")


def test_missing(model_folder: Path, tmp_path: Path) -> None:
    refused(model_folder, tmp_path / "gone.so", "gone.so: cannot read the op library")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"MZ" + bytes(100)])
def test_no_elf(content: bytes, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(content)
    refused(model_folder, tmp_path / "lib.so", "lib.so: expected an ELF shared library, found something else")


def test_other_architecture(model_folder: Path, stand_in: Path) -> None:
    header = bytearray(stand_in.read_bytes())
    here = header[18]
    header[18] = 243
    stand_in.write_bytes(header)
    assert here != 243
    refused(model_folder, stand_in, "the library is built for riscv64, this machine is ")
