"""One library loads in every ONNX Runtime that we support, and says so in one that is too old."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import fdpp_ort
from fdpp_ort import _core

from .attention_feeds import attributes, feeds, with_int8_cache
from .models import attention_model, dense, gemm_model

SCRIPT = """
import pathlib, sys, numpy as np, onnxruntime as ort
library, folder = sys.argv[1:]
print(ort.__version__)
options = ort.SessionOptions()
options.register_custom_ops_library(library)
for path in sorted(pathlib.Path(folder).glob("*.onnx")):
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if path.with_suffix(".npz").exists():
        feed = dict(np.load(path.with_suffix(".npz")))
        np.save(path.with_suffix(f".{ort.__version__}.npy"), session.run(None, feed)[0])
"""
VERSIONS = ("1.20.1", "1.24.4")
RUN = ("gemm", "attention", "int8", "dense")


def run(folder, runtime=None) -> subprocess.CompletedProcess:
    environment = dict(os.environ)
    if runtime is not None:
        environment["PYTHONPATH"] = str(runtime)
    command = [sys.executable, "-c", SCRIPT, fdpp_ort.library_path(), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 64)).astype(np.float16)
    feed = feeds([30, 12], 1)
    (tmp_path / "gemm.onnx").write_bytes(gemm_model(weight))
    (tmp_path / "attention.onnx").write_bytes(attention_model("FdppAttention", list(feed), **attributes(feed)))
    # 20 rows go through the product of the runtime itself.
    np.savez(tmp_path / "gemm.npz", a=rng.standard_normal((20, 64), dtype=np.float32))
    np.savez(tmp_path / "attention.npz", **feed)
    (tmp_path / "dense.onnx").write_bytes(dense((tmp_path / "attention.onnx").read_bytes()))
    np.savez(tmp_path / "dense.npz", **{**feed, "total_sequence_length": np.zeros((2, 30), np.int64)})
    feed = with_int8_cache(feed, "PER_CHANNEL")
    kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    (tmp_path / "int8.onnx").write_bytes(
        attention_model("FdppAttention", list(feed), cache="int8", **attributes(feed, **kinds))
    )
    np.savez(tmp_path / "int8.npz", **feed)
    return tmp_path


@pytest.mark.parametrize("version", VERSIONS)
def test_same_results(folder, other_runtime, version):
    for runtime, expected in ((None, ""), (other_runtime(version), version)):
        done = run(folder, runtime)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().startswith(expected)
    for name in RUN:
        results = [np.load(file) for file in sorted(folder.glob(f"{name}.*.npy"))]
        assert len(results) == 2
        np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_each_combination_of_types_loads(tmp_path, other_runtime):
    """The runtime finds the one of our ops that fits, and the types of its outputs, by the types of the inputs: the
    graphs state their outputs' types, and a session refuses a graph whose statement differs."""
    (spec,) = (spec for spec in _core.op_specs() if spec["name"] == "FdppAttention")
    inputs = ["query", "seqlens_k", "total_sequence_length"]
    models = {}
    for types in (signature["types"] for signature in spec["signatures"] if signature["backend"] == "cpu"):
        t, c = types["T"], types["C"]
        given = [*inputs, "past_key", "past_value"]
        models[f"{t} {c}"] = attention_model("FdppAttention", given, dtype=t, cache=c, num_heads=6, kv_num_heads=2)
        if t == c:
            models[t] = attention_model("FdppAttention", inputs, dtype=t, num_heads=6, kv_num_heads=2)
    assert len(models) == 7
    for name, model in models.items():
        (tmp_path / f"{name}.onnx").write_bytes(model)
    for runtime in (None, *map(other_runtime, VERSIONS)):
        done = run(tmp_path, runtime)
        assert done.returncode == 0, done.stderr


def test_too_old():
    """A runtime without our API is told so through what it does offer: here API 19, with CreateStatus alone."""
    messages = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code, message):
        messages.append(message.decode())
        return 1

    api = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))  # CreateStatus comes first in the table

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version):
        return ctypes.addressof(api) if version <= 19 else None

    @ctypes.CFUNCTYPE(ctypes.c_void_p)
    def get_version():
        return ctypes.cast(b"1.19.2", ctypes.c_void_p).value

    base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    register = ctypes.CDLL(fdpp_ort.library_path()).RegisterCustomOps
    register.argtypes, register.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_void_p
    assert register(None, base) == 1
    assert messages == ["fdpp_ort needs ONNX Runtime 1.20 or later; this is 1.19.2"]
