"""The op library that ONNX Runtime loads."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import ExportError

_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def checked_library(library: Path | None) -> Path:
    """`library`, if it is a shared object for this machine; raises ExportError otherwise."""
    if library is None:
        raise ExportError("target onnxruntime needs the op library; pass library=fdpp_ort.library_path()")
    machine, expected = _machine(library), _machine(Path(sys.executable))
    if machine != expected:
        raise ExportError(f"{library}: built for {_name(machine)}, but this machine is {_name(expected)}")
    return library


def _machine(path: Path) -> int:
    """e_machine of the ELF file at `path`."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        raise ExportError(f"{path}: cannot read the op library ({error.strerror})") from error
    if len(header) < 20 or header[:4] != b"\x7fELF":
        raise ExportError(f"{path}: not an ELF shared library")
    return int.from_bytes(header[18:20], "big" if header[5] == 2 else "little")


def _name(machine: int) -> str:
    return _MACHINES.get(machine, f"machine {machine}")
