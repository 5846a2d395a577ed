"""FdppFlatGemm inside an ONNX Runtime session on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import fdpp_ort
from fdpp_ort.export.pack import int4_words

from .models import gemm_model, matmul_nbits_model

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


def int4_weights(rows: int, k: int, block: int, zero_points: bool, seed: int = 0):
    """MatMulNBits' constants by name, the same for FdppFlatGemm, and what they stand for, [rows, k] in float64."""
    rng = np.random.default_rng(seed)
    blocks = -(-k // block)
    numbers = rng.integers(0, 16, (rows, blocks, block), np.uint8)
    theirs = {
        "b": numbers[..., ::2] | numbers[..., 1::2] << 4,
        "scales": rng.uniform(0.1, 0.3, (rows, blocks)).astype(np.float32),
    }
    zero = np.full((rows, blocks), 8, np.uint8)
    if zero_points:
        padded = rng.integers(0, 16, (rows, blocks + blocks % 2), np.uint8)
        zero = padded[:, :blocks]
        theirs["zero_points"] = padded[:, ::2] | padded[:, 1::2] << 4
    ours = theirs | {"b": int4_words(theirs["b"].reshape(rows, -1))}
    values = (numbers.astype(np.float64) - zero[..., None]) * theirs["scales"][..., None]
    return theirs, ours, values.reshape(rows, -1)[:, :k]


@pytest.mark.parametrize("accuracy_level", [0, 4])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 300), (8, 576, 576), (40, 96, 200)])
def test_int4_beside_matmul_nbits(session, m, n, k, block, zero_points, accuracy_level):
    """The same numbers, in the layout of either op; rounding A costs no more here than there."""
    theirs, ours, values = int4_weights(n, k, block, zero_points)
    settings = {"N": n, "K": k, "block_size": block, "accuracy_level": accuracy_level}
    a = np.random.default_rng(1).standard_normal((m, k), np.float32)
    (expected,) = session(matmul_nbits_model(theirs, **settings)).run(None, {"a": a})
    (y,) = session(gemm_model(ours.pop("b"), constants=ours, **settings)).run(None, {"a": a})
    exact = a.astype(np.float64) @ values.T
    assert y.shape == expected.shape
    assert np.abs(y - exact).max() < 1.5 * np.abs(expected - exact).max() + 1e-6 * np.abs(exact).max()
    if accuracy_level == 0:
        assert np.abs(y - exact).max() < 1e-5 * np.abs(exact).max()


def quantised_weights(form: str, rows: int, k: int):
    """b, its scales and zero points, the attributes that say so, and what they stand for, [rows, k] in float64."""
    rng = np.random.default_rng(2)
    if form == "int4":
        _, constants, values = int4_weights(rows, k, 32, True)
        return constants.pop("b"), constants, {"block_size": 32}, values
    scales = rng.uniform(0.1, 0.3, 1 if form == "fp8" else rows).astype(np.float32)
    if form == "int8":
        b = rng.integers(-128, 128, (rows, k), np.int8)
    else:
        b = rng.standard_normal((rows, k)).astype(ml_dtypes.float8_e4m3fn)
    return b, {"scales": scales}, {}, b.astype(np.float64) * scales[:, None]


@pytest.mark.parametrize("form", ["int8", "fp8", "int4"])
@pytest.mark.parametrize(("m", "n", "k"), [(7, 33, 47), (20, 6000, 576)])
@pytest.mark.parametrize("variant", ["", "cpu_runtime_gemm"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_all_around_a_product(session, forced, form, m, n, k, variant, norm):
    """Norm, gates, bias and residual with quantised weights; (6000, 576) takes the runtime's product several pieces."""
    forced("FdppFlatGemm", variant)
    b, constants, settings, values = quantised_weights(form, 2 * n, k)
    rng = np.random.default_rng(3)
    a, residual = rng.standard_normal((m, k), np.float32), rng.standard_normal((m, n), np.float32)
    a += 2  # a mean that counts
    bias, norm_weight = rng.standard_normal(2 * n, np.float32), rng.uniform(0.5, 1.5, k).astype(np.float32)
    norm_bias = rng.standard_normal(k, np.float32)
    model = gemm_model(
        b,
        bias=True,
        residual=True,
        constants=constants | {"norm_weight": norm_weight, "norm_bias": norm_bias},
        N=n,
        K=k,
        activation="silu_mul",
        norm=norm,
        norm_epsilon=1e-3,
        **settings,
    )
    (y,) = session(model).run(None, {"a": a, "bias": bias, "residual": residual})
    x = a.astype(np.float64)
    if norm == "layer":
        x -= x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * norm_weight + norm_bias
    gate, up = np.split(x @ values.T + bias, 2, axis=1)
    expected = gate / (1 + np.exp(np.minimum(-gate, 700))) * up + residual
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()


def test_leading_dimensions(session):
    a, b, expected = problem(6, 33, 47, "float32")
    (y,) = session(gemm_model(b, rank=4)).run(None, {"a": a.reshape(1, 2, 3, 47)})
    assert_close(y, expected.reshape(1, 2, 3, 33), 47)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_next_weight_changes_nothing(session, dtype):
    """Of whatever shape. No session takes one of another type than B's."""
    a, b, expected = problem(3, 33, 47, dtype)
    (plain,) = session(gemm_model(b)).run(None, {"a": a})
    assert_close(plain, expected, 47)
    for next_weight in (b[:1], b.reshape(-1), np.zeros((2, 5, 1), b.dtype), np.zeros((0, 5), b.dtype)):
        (y,) = session(gemm_model(b, constants={"next_weight": next_weight})).run(None, {"a": a})
        np.testing.assert_array_equal(y, plain)
    with pytest.raises(Exception, match="(?i)type"):
        session(gemm_model(b, constants={"next_weight": np.zeros((33, 47), np.int8)}))
    scalar = gemm_model(b, constants={"next_weight": np.zeros((), b.dtype)})
    with pytest.raises(Exception, match=r"next_weight is \w+ \[\], expected a tensor of"):
        session(scalar).run(None, {"a": a})


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
