"""What only a GPU does: CUDA graphs, bad values that only the device sees, and more memory than 32 bits can number."""

from __future__ import annotations

import dataclasses
import itertools

import harness
import pytest
import torch
from cases import AttentionCase, GemmCase
from harness import ATTENTION, GEMM, AttentionCall, GemmCall
from reference.precision import assert_accurate

from fdpp_ort import _core

pytestmark = pytest.mark.gpu
DTYPES = ("float16", "bfloat16")
CAPACITY = 300
LARGE_CAPACITY = 131072


def gpu_variants(op: str, cases: list) -> list:
    return [p for p in harness.parameters(op, cases) if pytest.mark.gpu in p.marks]


# Decode steps whose total_sequence_length is the capacity, an upper bound, as a captured graph has it.
DECODE_CASES = [
    AttentionCase((CAPACITY, CAPACITY), 1, 2, 3, 64, dtype, dtype, rotary="half", spare=0) for dtype in DTYPES
]
FLOAT16, BFLOAT16 = DECODE_CASES
GRAPH_CASES = [
    *DECODE_CASES,
    dataclasses.replace(FLOAT16, query_length=4),
    dataclasses.replace(FLOAT16, cache_dtype="int8", quantization="per_channel"),
    dataclasses.replace(FLOAT16, softmax_mode="unified", phi_range=1.0),
    dataclasses.replace(BFLOAT16, cache_dtype="float8e4m3fn", softmax_mode="online", positions="given"),
    dataclasses.replace(BFLOAT16, query_length=4, cache_dtype="int8", softmax_mode="unified", phi_range=1.0, norm=True),
]
POSITION_CASES = [
    dataclasses.replace(case, positions="given", query_length=tokens, cache_dtype=cache or case.dtype)
    for case in DECODE_CASES
    for tokens, cache in ((1, None), (4, None), (70, None), (1, "int8"))
]


def test_gpu_and_kernels_are_there() -> None:
    """Without a GPU these tests fail rather than pass for nothing."""
    assert torch.cuda.is_available(), "torch sees no GPU; run -m gpu on a GPU machine"
    assert _core.gpu_architectures() != "", "this build has no GPU kernels; build it with nvcc"
    assert _core.gpu_device(0)["multiprocessors"] > 0


@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, GRAPH_CASES))
def test_graph_replay_with_growing_lengths(variant: str, case: AttentionCase) -> None:
    """A step captured once and replayed with longer and longer rows gives the bits and the counts of eager calls."""
    device = harness.device_of(variant)
    tensors = harness.attention_tensors(case)
    captured, eager = (AttentionCall(case, tensors, device) for _ in range(2))
    captured_count, eager_count = (_core.DeviceCounter("cuda") for _ in range(2))
    for call in (captured, eager):  # a cache without holes: all slots may be read as lengths grow
        for name in ("past_key", "past_value"):
            past = call.inputs[name]
            past.copy_(past.float().nan_to_num(0.5).to(past.dtype))
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    lengths = torch.tensor([[20, 7], [21, 8], [64, 65], [255, 129], [CAPACITY, 256]], dtype=torch.int32, device=device)
    captured.inputs["seqlens_k"].copy_(lengths[0] - 1)
    torch.cuda.synchronize()  # what follows runs on a stream of its own
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
                counter=captured_count,
            )
    assert plan["variant"] == variant
    assert captured_count.read() == 0, "capture ran the kernel"
    previous = None
    for row in lengths:
        captured.inputs["seqlens_k"].copy_(row - 1)
        captured.outputs["output"].fill_(torch.nan)
        torch.cuda.synchronize()
        graph.replay()
        eager.inputs["seqlens_k"].copy_(row - 1)
        eager.run(variant, counter=eager_count)
        torch.cuda.synchronize()
        output = captured.outputs["output"].clone()
        assert torch.isfinite(output).all()
        assert harness.same_bits(output, eager.outputs["output"])
        assert harness.same_bits(captured.outputs["present_key"], eager.outputs["present_key"])
        assert previous is None or not torch.equal(output, previous), "the replay did not see the new lengths"
        previous = output
    assert captured_count.read() == eager_count.read()
    assert (eager_count.read() > 0) == (case.softmax_mode == "unified")


class LengthsWriter:
    """An attention call of one token that sees itself alone: its output is its value to the bit, which here are int32
    numbers. So a launch that lets the next one start early writes the lengths that the next one reads."""

    HEADS, HEAD_SIZE = 4, 64

    def __init__(self, device: str):
        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float16, device=device)

        columns = self.HEADS * self.HEAD_SIZE
        cache = (1, self.HEADS, 64, self.HEAD_SIZE)
        self.attributes = {"num_heads": self.HEADS, "kv_num_heads": self.HEADS}
        self.inputs = {
            "query": empty(1, 1, columns),
            "key": empty(1, 1, columns),
            "value": empty(1, 1, columns),
            "past_key": empty(*cache),
            "past_value": empty(*cache),
            "seqlens_k": torch.zeros(1, dtype=torch.int32, device=device),
            "total_sequence_length": 1,
        }
        self.outputs = {
            "output": empty(1, 1, columns),
            "present_key": self.inputs["past_key"],
            "present_value": self.inputs["past_value"],
        }

    def lengths(self, rows: int) -> torch.Tensor:
        return self.outputs["output"].view(torch.int32).flatten()[:rows]

    def run(self, stream: int) -> None:
        _core.attention(self.attributes, self.inputs, self.outputs, stream=stream)


LATE_LENGTH_CASES = [
    *GRAPH_CASES,
    dataclasses.replace(FLOAT16, lengths=(CAPACITY,) * 40, head_size=128),
    dataclasses.replace(FLOAT16, lengths=(CAPACITY,) * 100, group=1),
    dataclasses.replace(FLOAT16, lengths=(2500, 2500), kv_heads=1, head_size=128),
]


@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, LATE_LENGTH_CASES))
def test_lengths_that_the_launch_before_writes(variant: str, case: AttentionCase) -> None:
    """Lengths may change up to the end of the preceding launch: whatever stood there before has no influence."""
    device = harness.device_of(variant)
    tensors = harness.attention_tensors(case)
    late, early = (AttentionCall(case, tensors, device) for _ in range(2))
    for call in (late, early):
        for name in ("past_key", "past_value"):
            past = call.inputs[name]
            past.copy_(past.float().nan_to_num(0.5).to(past.dtype))
    writer = LengthsWriter(device)
    late.inputs["seqlens_k"] = writer.lengths(case.batch)
    plan = _core.plan_attention(case.attributes(), early.inputs, _core.gpu_device(0), variant=variant)
    workspace = torch.empty(max(plan["workspace_bytes"], 256), dtype=torch.uint8, device=device)
    generator = torch.Generator().manual_seed(5)
    least, most = case.query_length, case.capacity
    stream = torch.cuda.current_stream().cuda_stream

    def attend(call: AttentionCall) -> None:
        _core.attention(
            case.attributes(), call.inputs, call.outputs, workspace=workspace, stream=stream, variant=variant
        )

    for before in (most, least, 1 << 20, -1, None, None):
        then = torch.randint(least, most + 1, (case.batch,), generator=generator, dtype=torch.int32)
        was = torch.full_like(then, before) if before is not None else then.roll(1)
        writer.lengths(case.batch).copy_(was - 1)
        writer.inputs["value"].view(torch.int32).flatten()[: case.batch].copy_(then - 1)
        for call in (late, early):
            call.outputs["output"].fill_(torch.nan)
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000)  # both launches wait, so that the second follows the first at once
        writer.run(stream)
        attend(late)
        torch.cuda.synchronize()
        assert torch.equal(writer.lengths(case.batch).cpu(), then - 1), "the lengths did not arrive"
        early.inputs["seqlens_k"].copy_(then - 1)
        attend(early)
        torch.cuda.synchronize()
        assert torch.isfinite(late.outputs["output"]).all()
        assert harness.same_bits(late.outputs["output"], early.outputs["output"])
        for name in ("present_key", "present_value"):
            assert harness.same_bits(late.outputs[name], early.outputs[name])


FOLLOWING_CASES = [
    *GRAPH_CASES,
    dataclasses.replace(FLOAT16, lengths=(2500, 2500), kv_heads=1, head_size=128),
    dataclasses.replace(FLOAT16, lengths=(2500, 2400), kv_heads=1, head_size=128, query_length=16),
]


@pytest.mark.parametrize("products", [0, 2])
@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, FOLLOWING_CASES))
def test_steps_that_follow_at_once(variant: str, case: AttentionCase, products: int) -> None:
    """Launches that start before the one ahead has ended read nothing that it may be writing: steps queued at once give
    the bits of steps of which each is waited for. Products in between let the next launch start before they begin."""
    device = harness.device_of(variant)
    tensors = harness.attention_tensors(case)
    stream = torch.cuda.current_stream().cuda_stream
    generator = torch.Generator().manual_seed(3)
    queued, waited = (AttentionCall(case, tensors, device) for _ in range(2))
    product_case = GemmCase(1, 512, 512, "float16", "float16")
    product = GemmCall(product_case, harness.gemm_tensors(product_case), device)
    plan = _core.plan_attention(case.attributes(), queued.inputs, _core.gpu_device(0), variant=variant)
    workspace = torch.empty(max(plan["workspace_bytes"], 256), dtype=torch.uint8, device=device)
    steps = []
    for ahead in reversed(range(6)):
        fresh = {"seqlens_k": queued.inputs["seqlens_k"] - ahead * case.query_length}
        for name in ("query", "key", "value"):
            given = queued.inputs[name]
            if given is not None:
                fresh[name] = torch.randn(given.shape, generator=generator).to(device, given.dtype)
        steps.append(fresh)

    def attend(call: AttentionCall, fresh: dict[str, torch.Tensor], output: torch.Tensor) -> None:
        inputs, outputs = call.inputs | fresh, call.outputs | {"output": output}
        _core.attention(case.attributes(), inputs, outputs, workspace=workspace, stream=stream, variant=variant)

    for call in (queued, waited):
        for name in ("past_key", "past_value"):
            past = call.inputs[name]
            past.copy_(past.float().nan_to_num(0.5).to(past.dtype))
    results = [[torch.full_like(call.outputs["output"], torch.nan) for _ in steps] for call in (queued, waited)]
    torch.cuda.synchronize()
    for fresh, output in zip(steps, results[1], strict=True):
        attend(waited, fresh, output)
        torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000)  # all launches wait, so that each follows the one ahead at once
    for fresh, output in zip(steps, results[0], strict=True):
        attend(queued, fresh, output)
        for _ in range(products):
            _core.gemm(product_case.attributes(), product.inputs, product.outputs, stream=stream, variant="cuda_gemv")
    torch.cuda.synchronize()
    for one, other in zip(*results, strict=True):
        assert torch.isfinite(one).all()
        assert harness.same_bits(one, other)
    for name in ("present_key", "present_value"):
        assert harness.same_bits(queued.outputs[name], waited.outputs[name])


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


CHAIN_CASES = [
    GemmCase(m, 2048, 2048, d, w, norm=norm, block_size=32 * (w == "uint8"))
    for d, w in (("float16", "float16"), ("bfloat16", "bfloat16"), ("float16", "int8"), ("float16", "uint8"))
    for m in (1, 8)
    for norm in ("", "rms")
]


@pytest.mark.parametrize(("variant", "case"), gpu_variants(GEMM, CHAIN_CASES))
def test_hints_in_a_graph(variant: str, case: GemmCase) -> None:
    """Products that each read what the last one wrote and prefetch the next one's weight: a graph of them, replayed,
    gives the bits that calls without hints give."""
    device = harness.device_of(variant)
    calls = [GemmCall(case, harness.gemm_tensors(case), device) for _ in range(6)]
    for i, call in enumerate(calls):
        call.inputs["B"] = call.inputs["B"].roll(i, 0).contiguous()
    for call, following in itertools.pairwise(calls):
        following.inputs["A"] = call.outputs["Y"]

    def run_all() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for call in calls:
            options = {"workspace": call.workspace, "stream": stream, "variant": variant}
            _core.gemm(case.attributes(), call.inputs, call.outputs, **options)
            y = call.outputs["Y"]
            y.copy_(torch.nn.functional.rms_norm(y, y.shape[-1:]))  # or numbers would grow too large

    for call in calls:
        call.run(variant)  # for its workspace
    run_all()
    expected = [call.outputs["Y"].clone() for call in calls]
    assert all(torch.isfinite(y).all() for y in expected)
    for call, following in itertools.pairwise(calls):
        call.inputs["next_weight"] = following.inputs["B"]
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        run_all()
    for _ in range(3):
        for call in calls:
            call.outputs["Y"].fill_(torch.nan)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        for call, y in zip(calls, expected, strict=True):
            assert harness.same_bits(call.outputs["Y"], y)


@pytest.mark.parametrize(
    ("variant", "case"),
    gpu_variants(
        GEMM,
        [
            GemmCase(m, 64, 128, "float16", weights, norm=norm)
            for m, weights, norm in (
                (3, "float16", ""),
                (17, "float16", ""),
                (17, "int8", ""),
                (17, "float16", "rms"),
            )
        ],
    ),
)
def test_rows_of_a_beyond_2_31_elements(variant: str, case: GemmCase) -> None:
    far = dataclasses.replace(case, row_gap=2**31 // (case.m - 1))
    call = GemmCall(far, harness.gemm_tensors(case), harness.device_of(variant))
    assert call.inputs["A"][-1].storage_offset() >= 2**31
    taken, why = _core.supports(GEMM, far.attributes(), call.inputs, variant, _core.gpu_device(0))
    if not taken:  # rather than reading elsewhere
        assert variant == "cublaslt" and why.endswith("takes an A that spans less than 2^31 elements")
        return
    call.run(variant)
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


@pytest.mark.parametrize("bad", [-1, CAPACITY, 2**40])
@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, POSITION_CASES))
def test_bad_positions_on_the_device(variant: str, case: AttentionCase, bad: int) -> None:
    """The last token of a row names no row of cos_cache: its output is NaN, others are right, the next call tells."""
    device = harness.device_of(variant)
    good = AttentionCall(case, harness.attention_tensors(case), device)
    good.run(variant)
    call = AttentionCall(case, harness.attention_tensors(case), device)
    call.inputs["position_ids"][1, -1] = bad
    fault = _core.DeviceFault()
    call.run(variant, fault=fault)
    torch.cuda.synchronize()
    output, right = call.outputs["output"], good.outputs["output"]
    assert torch.isnan(output[1, -1]).all()
    assert harness.same_bits(output[0], right[0])
    assert harness.same_bits(output[1, :-1], right[1, :-1])
    with pytest.raises(ValueError, match=r"FdppAttention: an earlier call on the GPU .*position_ids"):
        call.run(variant, fault=fault)
    fault.take(ATTENTION)  # told once, then cleared


class Step:
    """A call whose tensors are made on the GPU: caches of NaN but for the random tokens of each row."""

    def __init__(self, case: AttentionCase):
        self.case = case
        generator = torch.Generator("cuda").manual_seed(11)
        dtype = harness.dtype_of(case.dtype)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cuda").to(dtype)

        tokens, kv_columns = (case.batch, case.query_length), case.kv_heads * case.head_size
        shape = (case.batch, case.kv_heads, case.capacity, case.head_size)
        caches = [torch.full(shape, torch.nan, dtype=dtype, device="cuda") for _ in range(2)]
        past = min(case.lengths) - case.query_length
        for cache in caches:
            cache[:, :, :past] = randn(case.batch, case.kv_heads, past, case.head_size)
        self.inputs = {
            "query": randn(*tokens, case.q_heads * case.head_size),
            "key": randn(*tokens, kv_columns),
            "value": randn(*tokens, kv_columns),
            "past_key": caches[0],
            "past_value": caches[1],
            "seqlens_k": torch.tensor(case.lengths, dtype=torch.int32, device="cuda") - 1,
            "total_sequence_length": case.total_length,
        }
        output = torch.full_like(self.inputs["query"], torch.nan)
        self.outputs = {"output": output, "present_key": caches[0], "present_value": caches[1]}

    def of_rows(self, rows: list[int]) -> Step:
        """The same step of some rows, all of the same length, in caches that just hold them."""
        part = object.__new__(Step)
        length = self.case.lengths[rows[0]]
        part.case = dataclasses.replace(self.case, lengths=(length,) * len(rows), spare=0)
        part.inputs = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in self.inputs.items()}
        for name in ("past_key", "past_value"):
            part.inputs[name] = torch.stack([self.inputs[name][row, :, :length] for row in rows])
        part.inputs["total_sequence_length"] = length
        output = torch.full_like(part.inputs["query"], torch.nan)
        present = (part.inputs["past_key"], part.inputs["past_value"])
        part.outputs = {"output": output, "present_key": present[0], "present_value": present[1]}
        return part

    def run(self, variant: str) -> None:
        harness.run(_core.attention, _core.plan_attention, self, variant, None, {})

    def assert_rows_equal(self, rows: list[int], small: Step) -> None:
        """Output up to the rounding that another split makes, and caches to the bit."""
        expected = small.outputs["output"].cpu()
        actual = self.outputs["output"][rows].cpu()
        assert_accurate(actual, expected.double(), expected.double(), actual.dtype, "output")
        for name in ("present_key", "present_value"):
            length = small.case.capacity
            for row, other in zip(rows, small.outputs[name], strict=True):
                assert harness.same_bits(self.outputs[name][row, :, :length], other)


@pytest.mark.parametrize(
    ("variant", "case"),
    gpu_variants(
        ATTENTION, [AttentionCase((2000,) * 17, tokens, 8, 4, 128, "float16", "float16") for tokens in (1, 4, 100)]
    ),
)
def test_cache_of_more_than_2_31_elements(variant: str, case: AttentionCase) -> None:
    """The last row lies beyond what 32 bits can number; it is as right as the first."""
    large = Step(dataclasses.replace(case, spare=LARGE_CAPACITY - 2000))
    assert large.inputs["past_key"][: large.case.batch - 1].numel() >= 2**31
    rows = [0, large.case.batch - 1]
    small = large.of_rows(rows)
    large.run(variant)
    small.run(variant)
    large.assert_rows_equal(rows, small)


@pytest.mark.parametrize(
    ("variant", "case"),
    gpu_variants(
        ATTENTION, [AttentionCase((1000, 1000), tokens, 2, 4, 128, "float16", "float16") for tokens in (1, 4)]
    ),
)
def test_short_rows_in_a_graph_of_large_capacity(variant: str, case: AttentionCase) -> None:
    """A graph captured for 131072 tokens and replayed with about 1000 gives what a small buffer gives."""
    lengths = (1000, 1001, 1024, 1500)
    longest = dataclasses.replace(case, lengths=(lengths[-1],) * 2, spare=LARGE_CAPACITY - lengths[-1])
    step = Step(longest)
    step.inputs["total_sequence_length"] = LARGE_CAPACITY
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step.run(variant)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            _core.attention(
                step.case.attributes(),
                step.inputs,
                step.outputs,
                workspace=step.workspace,
                stream=stream.cuda_stream,
                variant=variant,
            )
    for length in lengths:
        step.inputs["seqlens_k"].fill_(length - 1)
        step.case = dataclasses.replace(longest, lengths=(length,) * 2)
        small = step.of_rows([0, 1])
        step.outputs["output"].fill_(torch.nan)
        torch.cuda.synchronize()
        graph.replay()
        small.run(variant)
        torch.cuda.synchronize()
        step.assert_rows_equal([0, 1], small)


def many_rows(least: int, most: int, rows: int = 64) -> tuple[int, ...]:
    """Lengths, neighbours far apart."""
    return tuple(least + i * 37 % (most - least + 1) for i in range(rows))


# More pairs of a row and a KV head than an H200 has room for blocks: each block takes several, one after the other.
MANY_CASES = [
    AttentionCase(many_rows(1, 130), 1, 8, 4, 128, "float16", "float16", rotary="half"),
    AttentionCase(many_rows(1, 130), 1, 12, 1, 64, "bfloat16", "bfloat16", softmax_mode="unified", phi_range=1.0),
    AttentionCase(many_rows(200, 700), 1, 9, 3, 80, "float16", "float16", window=150, sink=True),
    AttentionCase(many_rows(3, 300), 3, 8, 4, 128, "float16", "float16", softcap=20.0),
    AttentionCase(many_rows(1, 200), 1, 8, 2, 256, "bfloat16", "bfloat16", softmax_mode="online"),
    AttentionCase(many_rows(1, 260), 1, 8, 8, 128, "float16", "int8", quantization="per_channel", norm=True),
    AttentionCase(many_rows(5, 3000, 200), 1, 1, 16, 64, "float16", "float8e4m3fn", quantization="per_tensor"),
]


@pytest.mark.parametrize(("variant", "case"), gpu_variants(ATTENTION, MANY_CASES))
def test_more_work_than_blocks(variant: str, case: AttentionCase) -> None:
    device = harness.device_of(variant)
    tensors = harness.attention_tensors(case)
    first, second = (AttentionCall(case, tensors, device) for _ in range(2))
    counts = []
    for call in (first, second):
        counter = _core.DeviceCounter("cuda")
        call.run(variant, counter=counter)
        counts.append(counter.read())
    first.check()
    assert harness.same_bits(first.outputs["output"], second.outputs["output"])
    assert counts[0] == counts[1]
    assert (counts[0] > 0) == (case.softmax_mode == "unified")

    # Rows of bad lengths among the others change nothing but their own output.
    third = AttentionCall(case, tensors, device)
    bad = [0, 17, 40, 63]
    third.inputs["seqlens_k"][bad] = case.capacity + 5
    third.run(variant, fault=_core.DeviceFault())
    torch.cuda.synchronize()
    good = [row for row in range(case.batch) if row not in bad]
    assert torch.isnan(third.outputs["output"][bad]).all()
    # Not to the bit: with fewer keys in all, long rows may be cut elsewhere.
    torch.testing.assert_close(third.outputs["output"][good], first.outputs["output"][good], rtol=0.02, atol=0.02)


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
