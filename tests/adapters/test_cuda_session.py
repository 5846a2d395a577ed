"""Both ops inside an ONNX Runtime session on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

import fdpp_ort

from .attention_feeds import HQ, POSITIONS, D, assert_only_new_slots_changed, attributes, feeds, with_int8_cache
from .models import attention_model, dense, gemm_model

pytestmark = pytest.mark.gpu

CUDA = "CUDAExecutionProvider"
INT8 = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
KEPT = ("k_scale", "v_scale", "phi")  # float32 whatever the type of the rest


def as_half(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float16) if v.dtype == np.float32 and k not in KEPT else v for k, v in feed.items()}


def half_feeds(*args, **options) -> dict[str, np.ndarray]:
    return as_half(feeds(*args, **options))


def half_attention(op: str, feed: dict, **more) -> bytes:
    cache = str(feed["past_key"].dtype)
    return attention_model(op, list(feed), dtype="float16", **{"cache": cache, **attributes(feed, **more)})


def last_variant(op: str) -> str:
    return [r for r in fdpp_ort.last_plan() if r["op"] == op][-1]["variant"]


@pytest.mark.parametrize(
    ("m", "variant"),
    [(1, "cuda_gemv"), (8, "cuda_flat_mma"), (130, "cublaslt")],
)
@pytest.mark.parametrize(("n", "k"), [(576, 1536), (4096, 576), (33, 47)])
def test_gemm(session, m, n, k, variant):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((1, m, k), (n, k)))
    bias, residual = (rng.standard_normal(shape).astype(np.float16) for shape in (n, (1, m, n)))
    runtime = session(gemm_model(b, bias=True, residual=True, rank=3, dtype="float16"), CUDA)
    (y,) = runtime.run(None, {"a": a, "bias": bias, "residual": residual})
    expected = a.astype(np.float64) @ b.astype(np.float64).T + bias + residual
    # One rounding to float16 after sums in float32.
    np.testing.assert_allclose(y, expected, rtol=1.01 * 2.0**-11, atol=4e-7 * k + 1e-5)
    if variant == "cublaslt" and k % 8:
        variant = "cuda_flat_mma"  # cuBLASLt is for rows of whole 16 bytes
    assert last_variant("FdppFlatGemm") == variant


@pytest.mark.parametrize("m", [1, 8, 130])
def test_a_next_weight_changes_nothing(session, m):
    rng = np.random.default_rng(0)
    shapes = (m, 576), (1000, 576), (3000, 900)
    a, b, next_weight = (rng.standard_normal(shape).astype(np.float16) for shape in shapes)
    results = [
        session(gemm_model(b, dtype="float16", constants=constants), CUDA).run(None, {"a": a})[0]
        for constants in ({}, {"next_weight": next_weight})
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("m", [1, 8])
def test_dense_gemm(session, m):
    """int8 weights in words give the bits that bytes give."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 0.1, 64).astype(np.float16)
    b = rng.integers(-128, 128, (64, 256), np.int8)
    model = gemm_model(b, dtype="float16", constants={"scales": scales})
    a = rng.standard_normal((m, 256)).astype(np.float16)
    np.testing.assert_array_equal(*(session(form, CUDA).run(None, {"a": a})[0] for form in (model, dense(model))))


@pytest.mark.parametrize(("lengths", "new"), [([7], 7), ([30, 12, 30], 1)])
def test_dense_attention(session, lengths, new):
    """A mask in GPU memory, of which the shape alone counts, stands in for the total length in host memory."""
    feed = {name: np.nan_to_num(values) for name, values in half_feeds(lengths, new, capacity=40).items()}
    model = half_attention("FdppAttention", feed)
    expected = session(model, CUDA).run(None, feed)
    feed["total_sequence_length"] = np.zeros((1, max(lengths)), np.int64)
    for mine, other in zip(session(dense(model), CUDA).run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "more", [{}, {"rotary_interleaved": 1}, {"softcap": 5.0}, {"local_window_size": 4}, {"scale": 0.3}]
)
@pytest.mark.parametrize(("lengths", "new"), [([7], 7), ([13, 13], 1), ([30, 12, 30], 1), ([20], 5)])
def test_attention_matches_group_query_attention(session, lengths, new, packed, more):
    feed = half_feeds(lengths, new, packed=packed)
    ours, theirs = (
        session(half_attention(op, feed, **more), CUDA).run(None, feed)
        for op in ("FdppAttention", "GroupQueryAttention")
    )
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for row, length in enumerate(lengths):
            mine_row, other_row = (x[row] if index == 0 else x[row, :, :length] for x in (mine, other))
            np.testing.assert_allclose(mine_row, other_row, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_in_place_equals_copied(session, cache):
    """Past and present in one buffer of the GPU; nothing but the new slots changes."""
    lengths, capacity = [30, 12], 40
    feed = half_feeds(lengths, 1, capacity=capacity)
    settings = {}
    if cache == "int8":
        feed, settings = as_half(with_int8_cache(feeds(lengths, 1, capacity=capacity), "PER_CHANNEL")), INT8
    runtime = session(half_attention("FdppAttention", feed, **settings), CUDA)
    expected = runtime.run(None, feed)

    binding = runtime.io_binding()
    on_gpu = {
        k: ort.OrtValue.ortvalue_from_numpy(v, "cuda", 0) for k, v in feed.items() if k != "total_sequence_length"
    }
    for name, value in on_gpu.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_cpu_input("total_sequence_length", feed["total_sequence_length"])
    binding.bind_output("output", "cuda")
    for name in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{name}", on_gpu[f"past_{name}"])
    runtime.run_with_iobinding(binding)

    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), expected[0])
    for index, name in enumerate(("past_key", "past_value"), start=1):
        assert_only_new_slots_changed(on_gpu[name].numpy(), expected[index], feed[name], lengths)


@pytest.mark.parametrize("bad", [-1, 13, 1000])
def test_bad_seqlens(session, bad):
    """Only the device sees them: NaN for that row, the others as ever, and the reason with the next call."""
    feed = half_feeds([13, 13], 1)
    runtime = session(half_attention("FdppAttention", feed), CUDA)
    good = runtime.run(None, feed)[0]
    output = runtime.run(None, {**feed, "seqlens_k": np.array([12, bad], np.int32)})[0]
    np.testing.assert_array_equal(output[0], good[0])
    assert np.isnan(output[1]).all()
    with pytest.raises(Exception, match="found a value of seqlens_k outside the cache"):
        runtime.run(None, feed)
    np.testing.assert_array_equal(runtime.run(None, feed)[0], good)


def test_bad_position_ids(session):
    """As with sequence lengths: NaN for that token, the others as ever, and the reason with the next call."""
    feed = half_feeds([13, 13], 1) | {"position_ids": np.array([[12], [3]])}
    runtime = session(half_attention("FdppAttention", feed), CUDA)
    good = runtime.run(None, feed)[0]
    for bad in (-1, POSITIONS):
        output = runtime.run(None, {**feed, "position_ids": np.array([[12], [bad]])})[0]
        np.testing.assert_array_equal(output[0], good[0])
        assert np.isnan(output[1]).all()
        with pytest.raises(Exception, match="found a value of position_ids that is no row of cos_cache"):
            runtime.run(None, feed)
        np.testing.assert_array_equal(runtime.run(None, feed)[0], good)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape, dtype=np.float32)


FEATURES = {
    "bias": (lambda feed, b, s, n: feed | {"attention_bias": random(b, HQ, s, n)}, {}),
    "one bias": (lambda feed, b, s, n: feed | {"attention_bias": random(1, 1, s, n)}, {"softcap": 5.0}),
    "position_ids": (lambda feed, b, s, n: feed | {"position_ids": np.arange(b * s).reshape(b, s)}, {}),
    "sink": (lambda feed, b, s, n: feed | {"head_sink": random(HQ)}, {"local_window_size": 4}),
    "norms": (lambda feed, b, s, n: feed | {"q_norm": random(D), "k_norm": random(D) + 1}, {"qk_norm_epsilon": 0.01}),
    "int8": (lambda feed, b, s, n: with_int8_cache(feed, "PER_CHANNEL"), INT8),
    "unified": (
        lambda feed, b, s, n: feed | {"phi": np.linspace(-1, 1, HQ, dtype=np.float32)},
        {"softmax_mode": "unified", "phi_lower": -2.0, "phi_upper": 2.0},
    ),
}


@pytest.mark.parametrize(("add", "settings"), FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize(("lengths", "new"), [([7, 7], 7), ([30, 12, 30], 1), ([60, 40], 5)])
def test_features_match_the_cpu(session, lengths, new, add, settings):
    """Float16 on the GPU against float32 on the CPU, of the same numbers."""
    feed = as_half(add(feeds(lengths, new), len(lengths), new, max(lengths)))
    single = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in feed.items()}
    cache = {"cache": str(single["past_key"].dtype)}
    model = attention_model("FdppAttention", list(single), **{**cache, **attributes(single, **settings)})
    expected = session(model).run(None, single)
    actual = session(half_attention("FdppAttention", feed, **settings), CUDA).run(None, feed)
    # What is stored in 8 bits may fall on the other side of a border between two steps.
    step = 1 if cache["cache"] == "int8" else 0
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(actual[0][row], expected[0][row], rtol=4e-3, atol=2e-2 if step else 4e-3)
        for mine, other in zip(actual[1:], expected[1:], strict=True):
            mine, other = (x[row, :, :length].astype(np.float32) for x in (mine, other))
            np.testing.assert_allclose(mine, other, rtol=0 if step else 4e-3, atol=step or 4e-3)


def out_of_range_rows(node: str) -> int:
    return sum(record["out_of_range_rows"] for record in fdpp_ort.last_plan() if record["node"] == node)


@pytest.mark.parametrize(("lengths", "new"), [([7, 7], 7), ([30, 12, 30], 1), ([60, 40], 5)])
def test_unified_softmax_counts_rows(session, lengths, new):
    """Also while a session on the CPU counts for a node of the same name: each device has a word of its own."""
    feed = half_feeds(lengths, new) | {"phi": np.zeros(HQ, np.float32)}
    rows = len(lengths) * new * HQ
    single = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in feed.items()}
    for bounds, count in (((-1e3, 1e3), 0), ((-1e-3, 1e-3), rows)):
        name = f"counted on two devices {bounds} {lengths}"
        settings = {"softmax_mode": "unified", "phi_lower": bounds[0], "phi_upper": bounds[1], "name": name}
        on_cpu = session(attention_model("FdppAttention", list(single), **attributes(single, **settings)))
        on_gpu = session(half_attention("FdppAttention", feed, **settings), CUDA)
        for runtime, inputs in ((on_cpu, single), (on_gpu, feed), (on_gpu, feed), (on_cpu, single)):
            before = out_of_range_rows(name)
            runtime.run(None, inputs)
            assert out_of_range_rows(name) - before == count


def test_threads_share_a_session(session):
    """Concurrent runs, each on a stream of its own, do not share workspaces."""
    feed = half_feeds([60], 1)
    runtime = session(half_attention("FdppAttention", feed), CUDA)
    inputs = [{**feed, "query": (feed["query"] * scale).astype(np.float16)} for scale in np.linspace(0.5, 2, 64)]
    expected = [runtime.run(None, one)[0] for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda one: runtime.run(None, one)[0], inputs))
    for mine, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_float32_graph_falls_back_to_the_cpu(session):
    """There are no float32 kernels for GPUs: the node runs on the CPU, and its result is right."""
    feed = feeds([13], 1)
    model = attention_model("FdppAttention", list(feed), **attributes(feed))
    np.testing.assert_array_equal(session(model, CUDA).run(None, feed)[0], session(model).run(None, feed)[0])
