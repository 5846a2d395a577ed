"""Whether this machine can load a shared library. Standard library only: the exporter asks as well."""

from __future__ import annotations

import os
import platform
import struct

# ELF's e_machine by the name that the kernel gives the architecture.
_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}


def why_not_loadable(path: str | os.PathLike) -> str | None:
    """What is wrong with the file at `path`: no ELF file, for another processor than this machine's, or cut short (the
    system's loader would kill the process over that). None: nothing. OSError: it cannot be read."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return "expected an ELF shared library, found something else"
    byte_order = ">" if header[5] == 2 else "<"
    (machine,) = struct.unpack_from(byte_order + "H", header, 18)
    here = platform.machine()
    if machine != _MACHINES.get(here, machine):
        built_for = next((name for name, value in _MACHINES.items() if value == machine), f"ELF machine {machine}")
        return f"the library is built for {built_for}, this machine is {here}"
    # The table of sections ends the file.
    (table_offset,) = struct.unpack_from(byte_order + "Q", header, 40)
    entry_size, entries = struct.unpack_from(byte_order + "HH", header, 58)
    if size < table_offset + entry_size * entries:
        return f"the library is cut short at {size} bytes"
    return None
