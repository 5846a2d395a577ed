"""import fdpp_ort, register, library_path, info, last_plan, force_variant."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest
from numpy._core import _multiarray_umath

import fdpp_ort
from fdpp_ort import library
from fdpp_ort.generation import Decoder, generate, load_model


def test_importing_loads_no_runtime(tmp_path):
    heavy = {"onnxruntime", "onnx", "torch", "fdpp_ort._core"}
    program = f"import sys, fdpp_ort; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_that_of_the_package():
    assert fdpp_ort.__version__ == version("fdpp-ort")


def test_python_and_sessions_load_the_same_file():
    fdpp_ort.info()  # loads _core
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libfdpp_ort" in line}
    assert loaded == {str(Path(fdpp_ort.library_path()).resolve())}


def test_register_wants_a_recent_onnxruntime(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    with pytest.raises(fdpp_ort.FdppError, match=r"onnxruntime 1\.19\.2 is too old: fdpp_ort needs 1\.20"):
        fdpp_ort.register(onnxruntime.SessionOptions())


@pytest.fixture
def other_library(monkeypatch, tmp_path) -> Path:
    """A copy of the library that register() takes for the installed one."""
    copy = tmp_path / "libfdpp_ort.so"
    shutil.copy(fdpp_ort.library_path(), copy)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    return copy


def test_register_names_a_missing_library(other_library):
    other_library.unlink()
    with pytest.raises(fdpp_ort.FdppError, match=re.escape(f"{other_library}: the custom-op library is missing")):
        fdpp_ort.register(onnxruntime.SessionOptions())


def test_register_refuses_a_library_for_another_architecture(other_library):
    content = bytearray(other_library.read_bytes())
    content[18:20] = (243).to_bytes(2, "little")  # e_machine: RISC-V
    other_library.write_bytes(content)
    with pytest.raises(fdpp_ort.FdppError, match="built for riscv64, this machine is"):
        fdpp_ort.register(onnxruntime.SessionOptions())


def test_register_refuses_what_is_no_library(other_library):
    other_library.write_text("not a library")
    with pytest.raises(fdpp_ort.FdppError, match="expected an ELF shared library"):
        fdpp_ort.register(onnxruntime.SessionOptions())


@pytest.mark.parametrize("kept", [10, 4096, -1])
def test_register_refuses_a_library_that_is_cut_short(other_library, kept):
    other_library.write_bytes(other_library.read_bytes()[:kept])
    with pytest.raises(fdpp_ort.FdppError, match="cut short|expected an ELF shared library"):
        fdpp_ort.register(onnxruntime.SessionOptions())


def test_register_reports_a_library_without_operators(other_library):
    shutil.copy(_multiarray_umath.__file__, other_library)
    with pytest.raises(fdpp_ort.FdppError, match="ONNX Runtime refuses the library"):
        fdpp_ort.register(onnxruntime.SessionOptions())


def test_info():
    report = fdpp_ort.info()
    assert report["version"] == fdpp_ort.__version__
    assert report["library"] == fdpp_ort.library_path()
    assert report["onnxruntime"]["version"] == onnxruntime.__version__
    assert "CPUExecutionProvider" in report["onnxruntime"]["providers"]
    assert report["cpu"]["threads"] >= 1
    assert (report["gpu"] is None) == bool(report["gpu_absent"])
    assert {variant["op"] for variant in report["variants"]} == {"FdppAttention", "FdppFlatGemm"}


def test_last_plan_tells_what_a_session_ran(fdpp_folder, unforced):
    decoder = Decoder(load_model(fdpp_folder, "cpu"), batch=1, capacity=8)
    for variant in ("cpu_scalar_flat", "cpu_runtime_gemm"):
        fdpp_ort.force_variant("FdppFlatGemm", variant)
        generate(decoder, [[1, 2, 3]], max_new_tokens=2)
        plans = {plan["node"]: plan for plan in fdpp_ort.last_plan()}
        assert plans["head"]["variant"] == variant
        assert plans["head"]["reason"] == "forced"
        assert plans["attention"]["op"] == "FdppAttention"


def test_force_variant_refuses_unknown_names():
    with pytest.raises(ValueError, match="no_such_variant"):
        fdpp_ort.force_variant("FdppFlatGemm", "no_such_variant")
