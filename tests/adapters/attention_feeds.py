"""Inputs for attention models."""

from __future__ import annotations

import numpy as np

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
    slots of `past` are as before, and so are those beyond the rows' lengths, which were NaN."""
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(present[row, :, :length], copied[row, :, :length])
        np.testing.assert_array_equal(present[row, :, : length - 1], past[row, :, : length - 1])
        assert np.isnan(present[row, :, length:]).all()


def attributes(feed: dict, **more) -> dict:
    return {"num_heads": HQ, "kv_num_heads": HKV, "do_rotary": int("cos_cache" in feed), **more}
