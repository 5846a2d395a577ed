"""The optional inputs of FdppAttention in a session on the CPU.

Held against the runtime's GroupQueryAttention for what its CPU kernel takes, else against the same call through _core.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

import fdpp_ort
from fdpp_ort import _core

from .attention_feeds import (
    HQ,
    POSITIONS,
    D,
    assert_only_new_slots_changed,
    assert_rows_close,
    attributes,
    feeds,
    run_both,
    with_int8_cache,
)
from .models import attention_model

SETTINGS = [{}, {"softcap": 5.0}, {"local_window_size": 4}, {"rotary_interleaved": 1}]
PER_ROW = ("query", "past_key", "past_value", "seqlens_k", "position_ids")
CALLS = [([7], 7), ([30, 12, 30], 1), ([20], 5)]  # lengths, new tokens: a prompt, decoding a ragged batch, a chunk


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("lengths", "new"), CALLS)
@pytest.mark.parametrize(("per_row", "per_head"), [(True, True), (False, True), (True, False), (False, False)])
def test_attention_bias(session, lengths, new, per_row, per_head, settings):
    feed = feeds(lengths, new)
    feed["attention_bias"] = random(len(lengths) if per_row else 1, HQ if per_head else 1, new, max(lengths))
    assert_rows_close(run_both(session, feed, **settings), lengths, [new] * len(lengths))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("lengths", "new"), CALLS[1:])
def test_position_ids(session, lengths, new, settings):
    feed = feeds(lengths, new)
    feed["position_ids"] = np.random.default_rng(3).integers(0, POSITIONS, (len(lengths), new))
    assert_rows_close(run_both(session, feed, **settings), lengths, [new] * len(lengths))


@pytest.mark.parametrize("settings", SETTINGS)
def test_position_ids_of_a_prompt(session, settings):
    """GroupQueryAttention counts all rows of a prompt from the first id of the first row; ours reads every id."""
    new = 7
    feed = feeds([new, new], new)
    feed["position_ids"] = np.arange(new) + [[9], [40]]
    ours = session(attention_model("FdppAttention", list(feed), **attributes(feed, **settings))).run(None, feed)
    theirs = session(attention_model("GroupQueryAttention", list(feed), **attributes(feed, **settings)))
    for row in range(2):
        alone = {name: feed[name][row : row + 1] for name in PER_ROW if name in feed}
        for mine, other in zip(ours, theirs.run(None, feed | alone), strict=True):
            np.testing.assert_allclose(mine[row], other[0], rtol=2e-5, atol=2e-6)


def test_position_ids_that_say_the_default(session):
    feed = feeds([20], 5)
    model = attention_model("FdppAttention", list(feed), **attributes(feed))
    expected = session(model).run(None, feed)
    feed["position_ids"] = np.arange(15, 20)[None]
    model = attention_model("FdppAttention", list(feed), **attributes(feed))
    for mine, other in zip(session(model).run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_position_ids_without_rotary(session):
    """Nothing reads them then, as in GroupQueryAttention."""
    feed = feeds([9], 2, rotary=False) | {"position_ids": np.full((1, 2), 1000)}
    assert_rows_close(run_both(session, feed), [9], [2])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("lengths", "new"), CALLS)
def test_head_sink(session, lengths, new, settings):
    feed = feeds(lengths, new) | {"head_sink": random(HQ)}
    assert_rows_close(run_both(session, feed, **settings), lengths, [new] * len(lengths))


@pytest.mark.parametrize("new", [6, 1])
def test_left_padding(session, new):
    """A second row padded on the left: a bias of -inf hides the padding, position_ids count from the first real token.
    Each row's real tokens get what GroupQueryAttention gives the row alone."""
    total, padding = 6 if new == 6 else 7, 2
    feed = feeds([total, total], new)
    feed["attention_bias"] = np.zeros((2, 1, new, total), np.float32)
    feed["attention_bias"][1, :, :, :padding] = -np.inf
    positions = np.arange(total - new, total)
    feed["position_ids"] = np.stack([positions, (positions - padding).clip(0)])
    model = attention_model("FdppAttention", list(feed), **attributes(feed))
    output, *present = session(model).run(None, feed)
    real = max(0, padding - (total - new))  # the new tokens before it are padding too
    assert (output[1, :real] == 0).all()

    for row, skipped in enumerate((0, padding)):
        alone = {name: feed[name][row : row + 1] for name in ("query", "past_key", "past_value")}
        alone["query"] = alone["query"][:, real if skipped else 0 :]
        alone |= {name: alone[name][:, :, skipped:] for name in ("past_key", "past_value")}
        alone["seqlens_k"] = np.array([total - skipped - 1], np.int32)
        alone["total_sequence_length"] = np.array([total - skipped], np.int32)
        alone |= {name: feed[name] for name in ("cos_cache", "sin_cache")}
        model = attention_model("GroupQueryAttention", list(alone), **attributes(alone))
        expected = session(model).run(None, alone)
        tokens = expected[0].shape[1]
        np.testing.assert_allclose(output[row, -tokens:], expected[0][0], rtol=2e-5, atol=2e-6)
        for mine, other in zip(present, expected[1:], strict=True):
            np.testing.assert_allclose(mine[row, :, skipped:], other[0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("lengths", "new"), CALLS)
def test_int8_cache(session, lengths, new, settings, kind):
    feed = with_int8_cache(feeds(lengths, new), kind)
    feed["attention_bias"] = random(1, HQ, new, max(lengths))
    pairs = run_both(session, feed, k_quant_type=kind, v_quant_type=kind, **settings)
    assert pairs[1][0].dtype == np.int8
    for (ours, theirs), name in zip(pairs[1:], ("key", "value"), strict=True):
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(ours[row, :, :length], theirs[row, :, :length], err_msg=name)
    assert_rows_close(pairs[:1], lengths, [new] * len(lengths))


@pytest.mark.parametrize("cache", ["int8", "float8e4m3fn"])
def test_8_bit_cache_in_place_equals_copied(session, cache):
    """The bits of separate buffers; nothing but the new slots changes."""
    lengths, kinds = [30, 12], {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_TENSOR"}
    feed = with_int8_cache(feeds(lengths, 1, capacity=40), "PER_CHANNEL")
    feed["v_scale"] = feed["v_scale"][:, 0, 0, 0]
    past = {name: feed.pop(name) for name in ("past_key", "past_value")}
    if cache != "int8":
        # Every byte but those of NaN is a number of float8e4m3fn.
        past = {name: np.where((x & 127) == 127, 0, x).astype(np.uint8) for name, x in past.items()}
    names = ["query", "past_key", "past_value", *(name for name in feed if name != "query")]
    runtime = session(attention_model("FdppAttention", names, cache=cache, **attributes(feed, **kinds)))

    def run(in_place: bool) -> list[np.ndarray]:
        binding = runtime.io_binding()
        buffers = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x.copy(), getattr(TensorProto, cache.upper()))
            for name, x in past.items()
        }
        for name, x in feed.items():
            binding.bind_cpu_input(name, x)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        binding.bind_output("output")
        for name in ("key", "value"):
            if in_place:
                binding.bind_ortvalue_output(f"present_{name}", buffers[f"past_{name}"])
            else:
                binding.bind_output(f"present_{name}")
        runtime.run_with_iobinding(binding)
        return [x.numpy().copy() for x in binding.get_outputs()]

    copied, updated = run(False), run(True)
    np.testing.assert_array_equal(updated[0], copied[0])
    assert np.isfinite(updated[0]).all()
    for before, copy, after in zip(past.values(), copied[1:], updated[1:], strict=True):
        assert_only_new_slots_changed(after, copy, before, lengths)
        assert all(
            (after[row, :, length - 1] != before[row, :, length - 1]).any() for row, length in enumerate(lengths)
        )


def through_core(feed: dict[str, np.ndarray], capacity: int, **settings) -> list[np.ndarray]:
    """Outputs of the same call without a runtime."""
    tensors = {name: torch.from_numpy(x) for name, x in feed.items()}
    batch, new, columns = tensors["query"].shape
    outputs = {"output": torch.empty(batch, new, columns * HQ // (columns // D))}
    shape = (*tensors["past_key"].shape[:2], capacity, D)
    for name in ("key", "value"):
        outputs[f"present_{name}"] = torch.zeros(shape, dtype=tensors[f"past_{name}"].dtype)
    _core.attention(attributes(feed, **settings), tensors, outputs)
    return [x.numpy() for x in outputs.values()]


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
@pytest.mark.parametrize(("lengths", "new"), CALLS)
def test_head_norms(session, lengths, new, epsilon):
    """GroupQueryAttention has them on CUDA alone."""
    feed = feeds(lengths, new) | {"q_norm": random(D), "k_norm": random(D) + 1}
    model = attention_model("FdppAttention", list(feed), **attributes(feed, qk_norm_epsilon=epsilon))
    results, expected = session(model).run(None, feed), through_core(feed, max(lengths), qk_norm_epsilon=epsilon)
    for index, (mine, other) in enumerate(zip(results, expected, strict=True)):
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(*(x[row] if index == 0 else x[row, :, :length] for x in (mine, other)))
    without = {name: x for name, x in feed.items() if not name.endswith("norm")}
    model = attention_model("FdppAttention", list(without), **attributes(without))
    assert not np.allclose(session(model).run(None, without)[0], results[0], atol=1e-2)


def out_of_range_rows(node: str) -> int:
    return sum(record["out_of_range_rows"] for record in fdpp_ort.last_plan() if record["node"] == node)


@pytest.mark.parametrize(("lengths", "new"), CALLS)
def test_unified_softmax_counts_rows(session, lengths, new):
    feed = feeds(lengths, new)
    online = session(attention_model("FdppAttention", list(feed), **attributes(feed, softmax_mode="online")))
    expected = online.run(None, feed)[0]
    feed["phi"] = np.linspace(-1, 1, HQ).astype(np.float32)
    rows = len(lengths) * new * HQ
    for bounds, count in (((-1e3, 1e3), 0), ((-1e-3, 1e-3), rows)):
        settings = {"softmax_mode": "unified", "phi_lower": bounds[0], "phi_upper": bounds[1]}
        node = f"counted {bounds} {lengths}"
        model = attention_model("FdppAttention", list(feed), name=node, **attributes(feed, **settings))
        runtime = session(model)
        for _ in range(2):
            before = out_of_range_rows(node)
            np.testing.assert_allclose(runtime.run(None, feed)[0], expected, rtol=2e-5, atol=2e-6)
            assert out_of_range_rows(node) - before == count


def test_lazy_softmax_counts_nothing(session):
    feed = feeds([20], 5)
    model = attention_model("FdppAttention", list(feed), name="not counted", **attributes(feed))
    session(model).run(None, feed)
    assert out_of_range_rows("not counted") == 0
