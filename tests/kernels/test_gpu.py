"""What only a GPU does: CUDA graphs, and bad values that only the device can see."""

from __future__ import annotations

import harness
import pytest
import torch
from cases import AttentionCase, GemmCase
from harness import ATTENTION, GEMM, AttentionCall, GemmCall

from fdpp_ort import _core

pytestmark = pytest.mark.gpu
DTYPES = ("float16", "bfloat16")
CAPACITY = 300


def gpu_variants(op: str, cases: list) -> list:
    return [p for p in harness.parameters(op, cases) if pytest.mark.gpu in p.marks]


# Decode steps whose total_sequence_length is the capacity, an upper bound, as a captured graph has it.
DECODE_CASES = [
    AttentionCase((CAPACITY, CAPACITY), 1, 2, 3, 64, dtype, dtype, rotary="half", spare=0) for dtype in DTYPES
]


def test_gpu_and_kernels_are_there() -> None:
    """Without a GPU these tests fail rather than pass for nothing."""
    assert torch.cuda.is_available(), "torch sees no GPU; run -m gpu on a GPU machine"
    assert _core.gpu_architectures() != "", "this build has no GPU kernels; build it with nvcc"
    assert _core.gpu_device(0)["multiprocessors"] > 0


@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, DECODE_CASES))
def test_graph_replay_with_growing_lengths(variant: str, case: AttentionCase) -> None:
    """A step captured once and replayed with longer and longer rows gives the bits of eager calls."""
    device = harness.device_of(variant)
    tensors = harness.attention_tensors(case)
    captured, eager = (AttentionCall(case, tensors, device) for _ in range(2))
    for call in (captured, eager):  # a cache without holes: all slots may be read as lengths grow
        for name in ("past_key", "past_value"):
            call.inputs[name].nan_to_num_(0.5)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    lengths = torch.tensor([[20, 7], [21, 8], [64, 65], [255, 129], [CAPACITY, 256]], dtype=torch.int32, device=device)
    captured.inputs["seqlens_k"].copy_(lengths[0] - 1)
    with torch.cuda.stream(stream):
        plan = captured.run(variant)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            _core.attention(
                case.attributes(),
                captured.inputs,
                captured.outputs,
                workspace=captured.workspace,
                stream=stream.cuda_stream,
                variant=variant,
            )
    assert plan["variant"] == variant
    previous = None
    for row in lengths:
        captured.inputs["seqlens_k"].copy_(row - 1)
        captured.outputs["output"].fill_(torch.nan)
        torch.cuda.synchronize()
        graph.replay()
        eager.inputs["seqlens_k"].copy_(row - 1)
        eager.run(variant)
        torch.cuda.synchronize()
        output = captured.outputs["output"].clone()
        assert torch.isfinite(output).all()
        assert harness.same_bits(output, eager.outputs["output"])
        assert harness.same_bits(captured.outputs["present_key"], eager.outputs["present_key"])
        assert previous is None or not torch.equal(output, previous), "the replay did not see the new lengths"
        previous = output


@pytest.mark.parametrize(
    ("variant", "case"),
    gpu_variants(GEMM, [GemmCase(m, 576, 192, d, d, bias=True) for d in DTYPES for m in (1, 8, 100)]),
)
def test_gemm_graph_replay(variant: str, case: GemmCase) -> None:
    device = harness.device_of(variant)
    call = GemmCall(case, harness.gemm_tensors(case), device)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call.run(variant)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            _core.gemm(
                case.attributes(),
                call.inputs,
                call.outputs,
                workspace=call.workspace,
                stream=stream.cuda_stream,
                variant=variant,
            )
    for _ in range(3):
        call.outputs["Y"].fill_(torch.nan)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        call.check(*harness.expected_gemm(case))


@pytest.mark.parametrize("bad", [-5, CAPACITY, CAPACITY + 1000, 2**31 - 1])
@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, DECODE_CASES))
def test_bad_lengths_on_the_device(variant: str, case: AttentionCase, bad: int) -> None:
    """A row with a bad length is NaN and leaves the cache alone; the other row is right; the next call tells."""
    device = harness.device_of(variant)
    good = AttentionCall(case, harness.attention_tensors(case), device)
    good.run(variant)
    call = AttentionCall(case, harness.attention_tensors(case), device)
    call.inputs["seqlens_k"][1] = bad
    before = call.inputs["past_key"][1].clone()
    fault = _core.DeviceFault()
    call.run(variant, fault=fault)
    torch.cuda.synchronize()
    output = call.outputs["output"]
    assert torch.isnan(output[1]).all()
    assert harness.same_bits(output[0], good.outputs["output"][0])
    assert harness.same_bits(call.inputs["past_key"][1], before)
    with pytest.raises(ValueError, match=r"FdppAttention: an earlier call on the GPU .*seqlens_k"):
        call.run(variant, fault=fault)
    fault.take(ATTENTION)  # told once, then cleared


def test_wrong_device_and_workspace() -> None:
    case = DECODE_CASES[0]
    assert torch.cuda.is_available(), "torch sees no GPU; run -m gpu on a GPU machine"
    call = AttentionCall(case, harness.attention_tensors(case), "cuda")
    plan = _core.plan_attention(case.attributes(), call.inputs, _core.gpu_device(0))
    if plan["workspace_bytes"]:
        with pytest.raises(ValueError, match="workspace is missing: this plan needs"):
            _core.attention(case.attributes(), call.inputs, call.outputs)
    call.inputs["query"] = call.inputs["query"].cpu()
    with pytest.raises(ValueError, match="lies on"):
        call.run()
