"""FdppFlatGemm inside an ONNX Runtime session on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import fdpp_ort

from .models import gemm_model

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def problem(m: int, n: int, k: int, dtype: str, seed: int = 0):
    """A [m, k] float32, B [n, k] of dtype, and A·Bᵀ in float64 over the rounded B."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, k), dtype=np.float32)
    b = rng.standard_normal((n, k), dtype=np.float32).astype(DTYPES[dtype])
    return a, b, a.astype(np.float64) @ b.astype(np.float64).T


def assert_close(actual: np.ndarray, expected: np.ndarray, k: int) -> None:
    # Float32 accumulation of k products of unit variance; a wrong element is off by about sqrt(k).
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max(initial=0) < 4e-7 * k + 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 16, 17, 130])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 47), (576, 1536), (5000, 64)])
def test_product(session, m, n, k, dtype):
    a, b, expected = problem(m, n, k, dtype)
    (y,) = session(gemm_model(b)).run(None, {"a": a})
    assert_close(y, expected, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 7, 130])
@pytest.mark.parametrize(("n", "k"), [(33, 47), (12000, 576)])
def test_runtime_gemm(session, forced, m, n, k, dtype):
    """The variant over the runtime's own product; (12000, 576) takes several conversion chunks."""
    forced("FdppFlatGemm", "cpu_runtime_gemm")
    a, b, expected = problem(m, n, k, dtype)
    rng = np.random.default_rng(1)
    bias, residual = rng.standard_normal(n, dtype=np.float32), rng.standard_normal((m, n), dtype=np.float32)
    runtime = session(gemm_model(b, bias=True, residual=True))
    (y,) = runtime.run(None, {"a": a, "bias": bias, "residual": residual})
    assert_close(y, expected + bias + residual, k)
    (record,) = [r for r in fdpp_ort.last_plan() if r["node"] == "gemm"]
    assert (record["variant"], record["reason"]) == ("cpu_runtime_gemm", "forced")


def test_leading_dimensions(session):
    a, b, expected = problem(6, 33, 47, "float32")
    (y,) = session(gemm_model(b, rank=4)).run(None, {"a": a.reshape(1, 2, 3, 47)})
    assert_close(y, expected.reshape(1, 2, 3, 33), 47)


def test_no_rows(session):
    _, b, _ = problem(1, 33, 47, "float32")
    (y,) = session(gemm_model(b, rank=3)).run(None, {"a": np.zeros((0, 5, 47), np.float32)})
    assert y.shape == (0, 5, 33)


@pytest.mark.parametrize("m", [1, 8, 40])
def test_threads_share_a_session(session, m):
    """Calls from several threads do not disturb each other."""
    a, b, expected = problem(m, 300, 200, "float16")
    runtime = session(gemm_model(b))
    scales = np.arange(1, 33, dtype=np.float32)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda s: runtime.run(None, {"a": a * s})[0], scales))
    for scale, y in zip(scales, results, strict=True):
        assert_close(y / scale, expected, 200)


@pytest.mark.parametrize(
    ("attributes", "feed", "message"),
    [
        ({"N": 34}, {}, r"B has shape \[33, 47\], expected \[N, K\] = \[34, 47\]"),
        ({"K": 48}, {}, r"A has shape \[2, 47\], expected a last dimension of K = 48"),
        ({"weight_format": "f16"}, {}, "B is float32 but weight_format says f16"),
        ({"weight_format": "int4"}, {}, "block_size is 0, expected 16, 32, 64 or 128"),
        ({"weight_format": "int8"}, {}, "B is float32 but weight_format says int8"),
        ({"activation": "tanh"}, {}, 'activation is "tanh", expected none, relu'),
        ({"N": 0}, {}, "N is 0"),
        ({}, {"a": np.zeros((2, 46), np.float32)}, r"A has shape \[2, 46\]"),
    ],
)
def test_bad_input(session, attributes, feed, message):
    a, b, _ = problem(2, 33, 47, "float32")
    with pytest.raises(Exception, match=message):
        session(gemm_model(b, **attributes)).run(None, {"a": a, **feed})
