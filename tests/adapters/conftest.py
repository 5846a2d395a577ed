"""Sessions with the custom-op library, and other versions of ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

import fdpp_ort

CACHE = Path(os.environ.get("FDPP_CACHE_DIR", Path(__file__).parents[2] / ".cache"))


@pytest.fixture
def session():
    """session(model_bytes, provider=...) -> InferenceSession with our library registered."""

    def make(model: bytes, provider: str = "CPUExecutionProvider", threads: int = 2) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # expected errors are asserted on, not printed
        fdpp_ort.register(options)
        runtime = ort.InferenceSession(model, options, providers=[provider])
        assert runtime.get_providers()[0] == provider, f"{provider} does not start on this machine"
        return runtime

    return make


@pytest.fixture
def forced():
    """forced(op, variant) for one test."""
    ops = []

    def force(op: str, variant: str) -> None:
        fdpp_ort.force_variant(op, variant)
        ops.append(op)

    yield force
    for op in ops:
        fdpp_ort.force_variant(op, "")


@pytest.fixture(scope="session")
def other_runtime():
    """other_runtime(version) -> folder with that onnxruntime for PYTHONPATH, installed once."""

    def install(version: str) -> Path:
        folder = CACHE / f"onnxruntime-{version}"
        if not (folder / "done").exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", folder]
            subprocess.run([*map(str, command), f"onnxruntime=={version}"], check=True)
            (folder / "done").touch()
        return folder

    return install
