"""FdppAttention inside an ONNX Runtime session on the CPU, held against the runtime's own GroupQueryAttention."""

from __future__ import annotations

import numpy as np
import pytest

from .attention_feeds import (
    HKV,
    HQ,
    POSITIONS,
    D,
    assert_right_in_place,
    assert_rows_close,
    attributes,
    feeds,
    rotary_caches,
    run_both,
)
from .models import attention_model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "more", [{}, {"rotary_interleaved": 1}, {"softcap": 5.0}, {"local_window_size": 4}, {"scale": 0.3}]
)
@pytest.mark.parametrize(("lengths", "new"), [([7], 7), ([13, 13], 1), ([30, 12, 30], 1), ([20], 5)])
def test_matches_group_query_attention(session, lengths, new, packed, more):
    pairs = run_both(session, feeds(lengths, new, packed=packed), **more)
    assert_rows_close(pairs, lengths, [new] * len(lengths))


def test_matches_without_rotary(session):
    assert_rows_close(run_both(session, feeds([9], 2, rotary=False)), [9], [2])


def test_right_padded_prompt(session):
    lengths, new = [7, 3], 7
    feed = feeds([new, new], new)
    feed["seqlens_k"] = np.array(lengths, np.int32) - 1
    pairs = run_both(session, feed)
    assert_rows_close(pairs, lengths, lengths)
    assert (pairs[0][0][1, 3:] == 0).all()


@pytest.mark.parametrize("mode", ["lazy", "online"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_half_cache(session, dtype, mode):
    feed = feeds([30, 12], 1)
    single = session(attention_model("FdppAttention", list(feed), **attributes(feed))).run(None, feed)
    for name in ("past_key", "past_value"):
        feed[name] = feed[name].astype(np.float16)
    if dtype == "float16":
        for name in ("query", "cos_cache", "sin_cache"):
            feed[name] = feed[name].astype(np.float16)
    model = attention_model(
        "FdppAttention", list(feed), dtype=dtype, cache="float16", **attributes(feed, softmax_mode=mode)
    )
    half = session(model).run(None, feed)
    assert [x.dtype for x in half] == [dtype, np.float16, np.float16]
    np.testing.assert_allclose(half[0].astype(np.float32), single[0], atol=5e-3)


def test_in_place_equals_copied(session):
    """Past and present in one buffer give the bits that separate ones give; nothing but the new slots changes."""
    lengths, capacity = [30, 12], 40
    feed = feeds(lengths, 1, capacity=capacity)
    runtime = session(attention_model("FdppAttention", list(feed), **attributes(feed)))
    expected = runtime.run(None, feed)
    assert_right_in_place(runtime, feed, expected, lengths)


def test_no_past(session):
    with_past = feeds([7], 7)
    feed = {k: v for k, v in with_past.items() if not k.startswith("past")}
    results, expected = (
        session(attention_model("FdppAttention", list(f), **attributes(f))).run(None, f) for f in (feed, with_past)
    )
    for mine, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_zero_batch(session):
    feed = feeds([13], 1)
    empty = {k: v[:0] if k in ("query", "past_key", "past_value", "seqlens_k") else v for k, v in feed.items()}
    output, key, _ = session(attention_model("FdppAttention", list(feed), **attributes(feed))).run(None, empty)
    assert output.shape == (0, 1, HQ * D)
    assert key.shape == (0, HKV, 13, D)


def without(*names):
    return lambda feed: {k: v for k, v in feed.items() if k not in names}


def changed(**values):
    return lambda feed: {**feed, **values}


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (changed(seqlens_k=np.array([13], np.int32)), {}, r"seqlens_k\[0\] is 13, expected 0 to 12"),
        (changed(seqlens_k=np.array([-1], np.int32)), {}, r"seqlens_k\[0\] is -1, expected 0 to 12"),
        (changed(seqlens_k=np.array([12, 12], np.int32)), {}, r"seqlens_k has shape \[2\], expected \[1\]"),
        (
            changed(total_sequence_length=np.array([20], np.int32)),
            {},
            "past_key .* holds fewer than the 19 past tokens",
        ),
        (changed(total_sequence_length=np.array([0], np.int32)), {}, "total_sequence_length is 0, less than the 1 new"),
        (without("past_value"), {}, "past_key and past_value must be given together"),
        (without("sin_cache"), {}, "cos_cache and sin_cache must be given together"),
        (without("cos_cache", "sin_cache"), {"do_rotary": 1}, "do_rotary is 1 but cos_cache and sin_cache are missing"),
        (changed(query=np.zeros((1, 1, 10 * D + 1), np.float32)), {}, "last dimension that 10 packed heads divide"),
        (changed(query=np.zeros((1, 1, 1000), np.float32)), {}, "head size 100 .* is not a multiple of 8 up to 256"),
        (changed(query=np.zeros((1, 1, 10240), np.float32)), {}, "head size 1024 .* is not a multiple of 8 up to 256"),
        (
            changed(past_key=np.zeros((1, 3, 12, D), np.float32)),
            {},
            r"past_key has shape \[1, 3, 12, 32\], expected \[1, 2,",
        ),
        (changed(position_ids=np.zeros((1, 2), np.int64)), {}, r"position_ids has shape \[1, 2\], expected \[1, 1\]"),
        (changed(position_ids=np.full((1, 1), POSITIONS)), {}, r"position_ids\[0, 0\] is 64"),
        (changed(position_ids=np.full((1, 1), -1)), {}, r"position_ids\[0, 0\] is -1"),
        (changed(attention_bias=np.zeros((1, 1, 1, 12), np.float32)), {}, "attention_bias has shape"),
        (changed(q_norm=np.ones(D, np.float32)), {}, "q_norm and k_norm must be given together"),
        (changed(), {"k_quant_type": "PER_TENSOR"}, 'k_quant_type is "PER_TENSOR" but past_key is float32'),
        (changed(), {"v_quant_type": "SOME"}, 'v_quant_type is "SOME", expected "NONE", "PER_TENSOR" or'),
        (changed(), {"softmax_mode": "unified"}, 'softmax_mode is "unified" but phi is missing'),
        (changed(phi=np.zeros(HQ, np.float32)), {"softmax_mode": "unified", "phi_lower": 1.0}, "phi_lower is 1"),
        (changed(), {"num_heads": 5}, "num_heads 5 and kv_num_heads 2"),
        (changed(), {"kv_num_heads": 0}, "num_heads 6 and kv_num_heads 0"),
        (changed(), {"softmax_mode": "fast"}, 'softmax_mode is "fast", expected "unified", "lazy" or "online"'),
        (changed(), {"local_window_size": 0}, "local_window_size is 0"),
        (changed(), {"softcap": -1.0}, "softcap is -1"),
        (changed(), {"do_rotary": 2}, "do_rotary is 2, expected 0 or 1"),
        (
            changed(cos_cache=rotary_caches()[0][:12], sin_cache=rotary_caches()[1][:12]),
            {},
            "cos_cache has 12 positions",
        ),
    ],
)
def test_bad_input(session, change, more, message):
    feed = change(feeds([13], 1))
    with pytest.raises(Exception, match=message):
        session(attention_model("FdppAttention", list(feed), **attributes(feed, **more))).run(None, feed)


def test_wrong_dtype_is_refused_at_load(session):
    feed = feeds([13], 1)
    model = attention_model("FdppAttention", list(feed), dtype="float32", cache="bfloat16", **attributes(feed))
    with pytest.raises(Exception, match="FdppAttention"):
        session(model)
