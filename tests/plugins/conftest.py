"""The plugin library, the host that stands in for TensorRT 10, and TensorRT for RTX, whose registry needs no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from host import Host

import fdpp_ort

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def library() -> str:
    try:
        return fdpp_ort.tensorrt_library_path()
    except fdpp_ort.FdppError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def host_build(library: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the host is built."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake to build the host with")
    build = tmp_path_factory.mktemp("host")
    for command in (["cmake", "-S", str(HERE), "-B", str(build)], ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def host(library: str, request: pytest.FixtureRequest) -> Host:
    """Built here, or what FDPP_TRT_HOST names: a machine without TensorRT's headers gets it built."""
    if prebuilt := os.environ.get("FDPP_TRT_HOST"):
        return Host(Path(prebuilt), library)
    return Host(request.getfixturevalue("host_build") / "libfdpp_trt_host.so", library)
