"""Inputs for attention models, and running them on our op and on the runtime's own."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from .models import attention_model

HQ, HKV, D, POSITIONS = 6, 2, 32, 64


def rotary_caches(dim: int = D) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, [POSITIONS, dim / 2] each."""
    angles = np.outer(np.arange(POSITIONS), 10000.0 ** (-np.arange(0, dim, 2) / dim))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def feeds(
    lengths: list[int], new: int, *, packed: bool = True, capacity: int | None = None, rotary: bool = True
) -> dict[str, np.ndarray]:
    """Inputs for rows of these total lengths, `new` of each row's tokens being new. The past has room for the longest
    row's past, or for `capacity` tokens; its unused slots are NaN."""
    rng = np.random.default_rng(0)
    batch, total = len(lengths), max(lengths)
    past = rng.standard_normal((2, batch, HKV, capacity or total - new, D), dtype=np.float32)
    for row, length in enumerate(lengths):
        past[:, row, :, length - new :] = np.nan
    feed = {
        "past_key": past[0],
        "past_value": past[1],
        "seqlens_k": np.array(lengths, np.int32) - 1,
        "total_sequence_length": np.array([total], np.int32),
    }
    if packed:
        feed["query"] = rng.standard_normal((batch, new, (HQ + 2 * HKV) * D), dtype=np.float32)
    else:
        feed["query"] = rng.standard_normal((batch, new, HQ * D), dtype=np.float32)
        feed["key"], feed["value"] = rng.standard_normal((2, batch, new, HKV * D), dtype=np.float32)
    if rotary:
        feed["cos_cache"], feed["sin_cache"] = rotary_caches()
    return feed


def assert_only_new_slots_changed(
    present: np.ndarray, copied: np.ndarray, past: np.ndarray, lengths: list[int]
) -> None:
    """`present`, updated in place with one new token a row, holds what a call with a separate present wrote (`copied`);
    slots of `past` are as before, and so are those beyond the rows' lengths."""
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(present[row, :, :length], copied[row, :, :length])
        np.testing.assert_array_equal(present[row, :, : length - 1], past[row, :, : length - 1])
        np.testing.assert_array_equal(present[row, :, length:], past[row, :, length:])


def assert_right_in_place(
    runtime: ort.InferenceSession, feed: dict[str, np.ndarray], expected: list[np.ndarray], lengths: list[int]
) -> None:
    """Past and present in one buffer give the bits that separate ones gave; nothing but the new slots changes."""
    binding = runtime.io_binding()
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(value.copy()) for name, value in feed.items()}
    for name, value in buffers.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    for name in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{name}", buffers[f"past_{name}"])
    runtime.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), expected[0])
    for index, name in enumerate(("past_key", "past_value"), start=1):
        assert_only_new_slots_changed(buffers[name].numpy(), expected[index], feed[name], lengths)


def attributes(feed: dict, **more) -> dict:
    return {"num_heads": HQ, "kv_num_heads": HKV, "do_rotary": int("cos_cache" in feed), **more}


def with_int8_cache(feed: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """`feed` with past divided by scales of `kind` and rounded; unused slots hold 127."""
    shape = (1,) if kind == "PER_TENSOR" else (1, HKV, 1, D)
    rng = np.random.default_rng(1)
    feed = dict(feed)
    for name in ("key", "value"):
        # The tensors are normal: a few new values lie beyond 127 times the smaller scales.
        feed[f"{name[0]}_scale"] = scale = rng.uniform(0.02, 0.04, shape).astype(np.float32)
        feed[f"past_{name}"] = np.nan_to_num(np.rint(feed[f"past_{name}"] / scale), nan=127).clip(-128, 127)
        feed[f"past_{name}"] = feed[f"past_{name}"].astype(np.int8)
    return feed


def run_both(session, feed: dict, **more) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ours, the runtime's) for each output."""
    cache = str(feed["past_key"].dtype)
    bits = {"kv_cache_bit_width": 8} if cache == "int8" else {}
    ours, theirs = (
        session(attention_model(op, list(feed), cache=cache, **attributes(feed, **more, **own))).run(None, feed)
        for op, own in (("FdppAttention", {}), ("GroupQueryAttention", bits))
    )
    return list(zip(ours, theirs, strict=True))


def assert_rows_close(pairs, lengths: list[int], tokens: list[int]) -> None:
    """Outputs have a row per new token (`tokens` of them count), caches a slot per token of the row's length."""
    for index, (ours, theirs) in enumerate(pairs):
        for row, length in enumerate(lengths):
            mine, other = (x[row, : tokens[row]] if index == 0 else x[row, :, :length] for x in (ours, theirs))
            np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)
