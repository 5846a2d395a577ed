"""How attention's work is shared out: the choice for a GPU that is not there, and a caller's own."""

from __future__ import annotations

import pytest
import torch
from cases import UNTUNED_H200

from fdpp_ort import _core

CUDA = [v["name"] for v in _core.variants() if v["backend"] == "cuda" and v["op"] == "FdppAttention"]


def call(
    batch: int, q_heads: int, kv_heads: int, context: int, head_size: int = 128, dtype: torch.dtype = torch.float16
) -> tuple[dict[str, object], dict[str, object]]:
    cache = torch.empty(batch, kv_heads, context, head_size, dtype=dtype)
    inputs = {
        "query": torch.zeros(batch, 1, (q_heads + 2 * kv_heads) * head_size, dtype=dtype),
        "past_key": cache,
        "past_value": cache,
        "seqlens_k": torch.full((batch,), context - 1, dtype=torch.int32),
        "total_sequence_length": context,
    }
    return {"num_heads": q_heads, "kv_num_heads": kv_heads}, inputs


def plan_for_h200(*arguments: int, split: dict[str, int] | None = None, head_size: int = 128) -> dict | None:
    """The plan; None where this build has no CUDA kernels and says so."""
    inputs = call(*arguments, head_size=head_size)
    if CUDA:
        return _core.plan_attention(*inputs, UNTUNED_H200, split=split)
    with pytest.raises(NotImplementedError, match="this build has none for that backend"):
        _core.plan_attention(*inputs, UNTUNED_H200, split=split)
    return None


@pytest.mark.parametrize("context", [8192, 32768])
@pytest.mark.parametrize(("batch", "q_heads", "kv_heads"), [(1, 32, 8), (1, 32, 32), (1, 40, 40), (8, 32, 8)])
def test_decode_fills_an_h200(batch: int, q_heads: int, kv_heads: int, context: int) -> None:
    plan = plan_for_h200(batch, q_heads, kv_heads, context)
    if plan is None:
        return
    assert plan["variant"] == "cuda_decode_hopper"
    split = plan["split"]
    blocks = batch * kv_heads * split["cluster"] * split["pieces"]
    assert UNTUNED_H200["multiprocessors"] / 3 <= blocks <= 3 * UNTUNED_H200["multiprocessors"]
    assert plan["num_splits"] == split["pieces"] * split["cluster"]


@pytest.mark.parametrize(("context", "resident"), [(1024, 2), (4096, 1), (32768, 1)])
def test_blocks_with_a_long_way_have_multiprocessors_of_their_own(context: int, resident: int) -> None:
    """8 rows of 8 KV heads: 128 blocks on 132 multiprocessors."""
    plan = plan_for_h200(8, 32, 8, context)
    expected = {"pieces": 1, "cluster": 2, "blocks_per_multiprocessor": resident}
    assert plan is None or plan["split"] == expected


def test_short_contexts_and_many_heads_stay_whole() -> None:
    for arguments in ((1, 32, 8, 128), (64, 32, 32, 4096)):
        plan = plan_for_h200(*arguments, head_size=64)
        assert plan is None or plan["num_splits"] == 1


@pytest.mark.parametrize(
    ("arguments", "head_size", "variant"),
    [
        ((64, 32, 8, 128), 64, "cuda_decode_short"),
        ((1, 32, 8, 128), 128, "cuda_decode_short"),
        ((1, 32, 8, 129), 128, "cuda_decode_hopper"),
        ((64, 32, 8, 128), 128, "cuda_decode_hopper"),
        ((1, 32, 8, 128), 256, "cuda_decode_hopper"),
    ],
)
def test_short_contexts_have_a_kernel_of_their_own(arguments: tuple[int, ...], head_size: int, variant: str) -> None:
    plan = plan_for_h200(*arguments, head_size=head_size)
    assert plan is None or plan["variant"] == variant


def test_workspace_follows_the_split() -> None:
    one, four = (plan_for_h200(1, 32, 8, 8192, split={"pieces": n, "cluster": 2}) for n in (1, 4))
    assert one is None or four["workspace_bytes"] > one["workspace_bytes"]


@pytest.mark.skipif(not CUDA, reason="a build without CUDA kernels offers nothing for a GPU")
@pytest.mark.parametrize("context", [128, 1024, 32768])
@pytest.mark.parametrize(("batch", "q_heads", "kv_heads"), [(1, 9, 3), (1, 32, 8), (4, 32, 32), (16, 32, 8)])
def test_splits_worth_timing_on_an_h200(batch: int, q_heads: int, kv_heads: int, context: int) -> None:
    """A dozen or so for each variant, its own choice first, and none twice; some variants have their own alone."""
    inputs = call(batch, q_heads, kv_heads, context)
    counts = {}
    for name in CUDA:
        if not _core.supports("FdppAttention", *inputs, name, UNTUNED_H200)[0]:
            continue
        splits = _core.attention_splits(*inputs, UNTUNED_H200, name)
        assert splits[0] == _core.plan_attention(*inputs, UNTUNED_H200, variant=name)["split"]
        assert all(splits.count(split) == 1 for split in splits)
        for split in splits:
            assert _core.plan_attention(*inputs, UNTUNED_H200, variant=name, split=split)["split"] == split
        counts[name] = len(splits)
    assert 1 < counts["cuda_decode_hopper"] <= 14
    assert counts.get("cuda_decode_short", 1) == 1


def test_splits_worth_timing_on_the_cpu() -> None:
    """The variant's own alone: its threads divide the work themselves."""
    device = _core.cpu_device()
    inputs = call(1, 4, 2, 256, dtype=torch.float32)
    own = _core.plan_attention(*inputs, device, variant="cpu_scalar")["split"]
    assert _core.attention_splits(*inputs, device, "cpu_scalar") == [own]
    with pytest.raises(ValueError, match='has no variant "nothing"'):
        _core.attention_splits(*inputs, device, "nothing")
    with pytest.raises(NotImplementedError, match="cpu_scalar runs on cpu, not on cuda"):
        _core.attention_splits(*inputs, UNTUNED_H200, "cpu_scalar")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"pieces": 0}, "split's pieces is 0, expected 1 to 65536"),
        ({"pieces": 70000}, "split's pieces is 70000, expected 1 to 65536"),
        ({"cluster": 3}, "split's cluster is 3, expected 1, 2, 4 or 8"),
        ({"blocks_per_multiprocessor": 0}, "split's blocks_per_multiprocessor is 0, expected at least 1"),
        ({"pices": 2}, 'unknown split key "pices"'),
    ],
)
def test_wrong_splits(split: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.plan_attention(*call(1, 4, 2, 256, dtype=torch.float32), _core.cpu_device(), split=split)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"pieces": 0}, "split's pieces is 0, expected 1 to 64"),
        ({"rows": -1}, "split's rows is -1, expected 0 to 1024"),
        ({"stages": 65}, "split's stages is 65, expected 0 to 64"),
        ({"algorithm": 16}, "split's algorithm is 16, expected 0 to 15"),
        ({"cluster": 2}, 'unknown split key "cluster"'),
    ],
)
def test_wrong_splits_of_a_product(split: dict[str, int], message: str) -> None:
    inputs = {"A": torch.zeros(1, 8), "B": torch.zeros(8, 8)}
    with pytest.raises(ValueError, match=message):
        _core.plan_gemm({"N": 8, "K": 8, "weight_format": "f32"}, inputs, _core.cpu_device(), split=split)


def test_a_callers_split_is_followed() -> None:
    attributes, inputs = call(1, 4, 2, 600, dtype=torch.float32)
    cache = torch.randn(1, 2, 600, 128)
    outputs = []
    for pieces in (1, 3):
        past = [cache.clone(), cache.clone()]
        out = torch.empty(1, 1, 4 * 128)
        inputs |= {"query": torch.arange(8 * 128.0).sin().reshape(1, 1, -1), "past_key": past[0], "past_value": past[1]}
        result = {"output": out, "present_key": past[0], "present_value": past[1]}
        plan = _core.attention(attributes, inputs, result, split={"pieces": pieces})
        assert plan["num_splits"] == pieces
        outputs.append(out)
    torch.testing.assert_close(*outputs)
