"""The library beside a TensorRT that it was not built for, and the example's code against the headers that it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What TensorRT would do, in a process whose getInferLibVersion() is that of another.
LOAD = """
import ctypes, sys
runtime = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(sys.argv[2])
count = ctypes.c_int32(-1)
for name in ("getCreators", "getPluginCreators"):
    getattr(library, name)(ctypes.byref(count))
    print(name, count.value)
"""


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (8600, "was built for TensorRT 10, the one that runs is TensorRT 8;"),
        (110000, "was built for TensorRT 10, the one that runs is TensorRT 11;"),
        (101401, None),
        (10701, None),  # for RTX, 1.7
    ],
)
def test_other_versions_are_refused(library: str, tmp_path: Path, version: int, said: str | None) -> None:
    stub = tmp_path / "libruntime.so"
    source = f"int getInferLibVersion(void) {{ return {version}; }}"
    subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", str(stub)], input=source, text=True, check=True)
    done = subprocess.run([sys.executable, "-c", LOAD, str(stub), library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["getCreators", "0" if said else "2"]
    assert (said or "") in done.stderr and bool(done.stderr) == bool(said)


def test_the_example_compiles(host_build: Path) -> None:
    """Its other program needs the parser's header, which no wheel has."""
    command = ["cmake", "--build", str(host_build), "--target", "example_compiles"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
