"""Runs one case on one variant, over poisoned memory, and checks everything that the call may and may not write."""

from __future__ import annotations

import collections
import functools
import zlib

import pytest
import torch
from cases import H200, AttentionCase, GemmCase
from reference import precision
from reference.attention import AttentionResult, AttentionTensors
from reference.attention import attention as reference_attention
from reference.gemm import gemm as reference_gemm

from fdpp_ort import _core

ATTENTION, GEMM = (spec["name"] for spec in _core.op_specs())


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def random(case: object, *shapes: tuple[int, ...] | None) -> list[torch.Tensor | None]:
    """Normal float32 tensors that depend on the case alone; None stays None."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(case).encode()))
    return [None if shape is None else torch.randn(shape, generator=generator) for shape in shapes]


# ---- which variant takes which case ----


def planning_device(backend: str) -> dict[str, object]:
    """The device that a backend's variants are asked about: the one that is there, or else an H200."""
    if backend == "cpu":
        return _core.cpu_device()
    return _core.gpu_device(0) if torch.cuda.is_available() else H200


def shapes_only(case: AttentionCase | GemmCase) -> dict[str, object]:
    """The inputs of `case` without contents, for planning."""
    t = dtype_of(case.dtype)
    if isinstance(case, GemmCase):
        return {
            "A": torch.empty(case.m, case.k, dtype=t),
            "B": torch.empty(case.n, case.k, dtype=dtype_of(case.weight_dtype)),
            "bias": torch.empty(case.n, dtype=t) if case.bias else None,
            "residual": torch.empty(case.m, case.n, dtype=t) if case.residual else None,
        }
    heads = case.kv_heads * case.head_size
    past = None
    if case.cache != "none":
        past = torch.empty(
            case.batch, case.kv_heads, case.past_capacity, case.head_size, dtype=dtype_of(case.cache_dtype)
        )
    columns = case.q_heads * case.head_size + (2 * heads if case.packed else 0)
    new = None if case.packed else torch.empty(case.batch, case.query_length, heads, dtype=t)
    caches = torch.empty(case.total_length, case.rotary_dim // 2, dtype=t) if case.rotary_dim else None
    return {
        "query": torch.empty(case.batch, case.query_length, columns, dtype=t),
        "key": new,
        "value": new,
        "past_key": past,
        "past_value": past,
        "seqlens_k": torch.empty(case.batch, dtype=torch.int32),
        "total_sequence_length": case.total_length,
        "cos_cache": caches,
        "sin_cache": caches,
        "head_sink": torch.empty(case.q_heads, dtype=t) if case.sink else None,
    }


def supporting(op: str, cases: list, **device_changes: object) -> list[tuple[str, str, object]]:
    """(backend, variant, case) for each case that a variant of `op` takes, cases outermost."""
    variants = [v for v in _core.variants() if v["op"] == op]
    rows = []
    for case in cases:
        inputs = shapes_only(case)
        for v in variants:
            device = planning_device(v["backend"]) | device_changes
            if _core.supports(op, case.attributes(), inputs, v["name"], device)[0]:
                rows.append((v["backend"], v["name"], case))
    return rows


def parameters(op: str, cases: list) -> list:
    """Pytest parameters (variant, case) of all supported pairs; those of GPU variants carry the mark ``gpu``."""
    return [
        pytest.param(name, case, id=f"{name}-{case.id}", marks=[pytest.mark.gpu] if backend != "cpu" else [])
        for backend, name, case in supporting(op, cases)
    ]


def device_of(variant: str) -> str:
    """The torch device of a variant's backend; fails where that is a GPU and there is none."""
    backend = next(v["backend"] for v in _core.variants() if v["name"] == variant)
    if backend == "cpu":
        return "cpu"
    assert torch.cuda.is_available(), f"{variant} needs a GPU that torch sees; run these tests on a GPU machine"
    return "cuda"


# ---- attention ----


@functools.lru_cache(maxsize=2)
def attention_tensors(case: AttentionCase) -> AttentionTensors:
    """Random inputs on the CPU in the op's types; cache slots that hold no token are NaN."""
    t, c = dtype_of(case.dtype), dtype_of(case.cache_dtype)
    past_shape = (case.batch, case.kv_heads, case.past_capacity, case.head_size) if case.cache != "none" else None
    tokens = (case.batch, case.query_length)
    query, key, value, past_key, past_value, sink = random(
        case,
        (*tokens, case.q_heads, case.head_size),
        (*tokens, case.kv_heads, case.head_size),
        (*tokens, case.kv_heads, case.head_size),
        past_shape,
        past_shape,
        (case.q_heads,) if case.sink else None,
    )
    cos = sin = None
    if case.rotary_dim:
        frequencies = 10000.0 ** (-torch.arange(0, case.rotary_dim, 2) / case.rotary_dim)
        angles = torch.arange(case.total_length)[:, None] * frequencies
        cos, sin = angles.cos().to(t), angles.sin().to(t)
    if past_key is not None and past_value is not None:
        past_key, past_value = past_key.to(c), past_value.to(c)
        for b, length in enumerate(case.lengths):
            past = 0 if case.prompt else length - case.query_length
            past_key[b, :, past:] = torch.nan
            past_value[b, :, past:] = torch.nan
    return AttentionTensors(
        query.to(t),
        key.to(t),
        value.to(t),
        past_key,
        past_value,
        case.lengths,
        case.prompt,
        cos,
        sin,
        None if sink is None else sink.to(t),
        case.rotary == "interleaved",
        case.scale,
        case.softcap,
        case.window,
    )


@functools.lru_cache(maxsize=2)
def expected_attention(case: AttentionCase) -> tuple[AttentionResult, AttentionResult]:
    """(reference, naive) over attention_tensors(case)."""
    return expect_attention(case, attention_tensors(case))


def expect_attention(case: AttentionCase, t: AttentionTensors) -> tuple[AttentionResult, AttentionResult]:
    plain = precision.naive(dtype_of(case.dtype), dtype_of(case.cache_dtype))
    return reference_attention(t, precision.EXACT), reference_attention(t, plain)


class AttentionCall:
    """The tensors of one call on a device: inputs as the op takes them, outputs poisoned with NaN."""

    def __init__(self, case: AttentionCase, tensors: AttentionTensors, device: str):
        def on_device(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.clone().to(device).contiguous()

        self.case, self.tensors = case, tensors
        query, key, value = tensors.query, tensors.key, tensors.value
        if case.packed:
            query, key, value = torch.cat((query, key, value), dim=2), None, None
        flat = [None if x is None else on_device(x.flatten(2)) for x in (query, key, value)]
        past = [on_device(x) for x in (tensors.past_key, tensors.past_value)]
        seqlens = torch.tensor(case.lengths, dtype=torch.int32, device=device) - 1
        self.inputs = {
            "query": flat[0],
            "key": flat[1],
            "value": flat[2],
            "past_key": past[0],
            "past_value": past[1],
            "seqlens_k": seqlens,
            "total_sequence_length": case.total_length,
            "cos_cache": on_device(tensors.cos),
            "sin_cache": on_device(tensors.sin),
            "head_sink": on_device(tensors.sink),
        }
        present = past
        if case.cache != "in_place":
            shape = (case.batch, case.kv_heads, case.capacity, case.head_size)
            present = [torch.full(shape, torch.nan, dtype=dtype_of(case.cache_dtype), device=device) for _ in range(2)]
        output = torch.full(
            (case.batch, case.query_length, case.q_heads * case.head_size),
            torch.nan,
            dtype=dtype_of(case.dtype),
            device=device,
        )
        self.outputs = {"output": output, "present_key": present[0], "present_value": present[1]}

    def run(self, variant: str | None = None, threads: int | None = None, **options: object) -> dict[str, object]:
        return run(_core.attention, _core.plan_attention, self, variant, threads, options)

    def check(self, reference: AttentionResult, naive: AttentionResult) -> None:
        """Output, new cache entries and all that must not change."""
        case, t = self.case, dtype_of(self.case.dtype)
        shape = (case.batch, case.query_length, case.q_heads, case.head_size)
        # A head's output is an average of values: the more of them, the smaller.
        precision.assert_accurate(
            self.outputs["output"].cpu().view(shape),
            reference.output,
            naive.output,
            t,
            "output",
            size=reference.output.abs().amax(-1, keepdim=True),
        )
        for name, new, plain in (
            ("key", reference.new_key, naive.new_key),
            ("value", reference.new_value, naive.new_value),
        ):
            present = self.outputs[f"present_{name}"].cpu()
            before = getattr(self.tensors, f"past_{name}")
            for b, length in enumerate(case.lengths):
                past = 0 if case.prompt else length - case.query_length
                what = f"present_{name}[{b}]"
                # Padding of a prompt may be appended or not: nobody reads it.
                precision.assert_accurate(
                    present[b, :, past:length],
                    new[b, :, : length - past],
                    plain[b, :, : length - past],
                    present.dtype,
                    f"{what} (new tokens)",
                )
                if past:
                    assert same_bits(present[b, :, :past], before[b, :, :past]), f"{what}: past tokens changed"
                end = case.query_length if case.prompt else length
                if case.cache == "in_place":
                    assert same_bits(present[b, :, end:], before[b, :, end:]), f"{what}: slots beyond {end} changed"


# ---- GEMM ----


@functools.lru_cache(maxsize=2)
def gemm_tensors(case: GemmCase) -> dict[str, torch.Tensor | None]:
    """Random inputs on the CPU in the op's types, by input name."""
    a, b, bias, residual = random(
        case,
        (case.m, case.k),
        (case.n, case.k),
        (case.n,) if case.bias else None,
        (case.m, case.n) if case.residual else None,
    )
    t = dtype_of(case.dtype)
    return {
        "A": a.to(t),
        "B": b.to(dtype_of(case.weight_dtype)),
        "bias": None if bias is None else bias.to(t),
        "residual": None if residual is None else residual.to(t),
    }


@functools.lru_cache(maxsize=2)
def expected_gemm(case: GemmCase) -> tuple[torch.Tensor, torch.Tensor]:
    """(reference, naive) over gemm_tensors(case), each [M, N]."""
    return expect_gemm(case, gemm_tensors(case))


def expect_gemm(case: GemmCase, t: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (t["A"], t["B"], t["bias"], t["residual"])
    return reference_gemm(*tensors, precision.EXACT), reference_gemm(*tensors, precision.naive(dtype_of(case.dtype)))


class GemmCall:
    """The tensors of one call on a device, the output poisoned with NaN."""

    def __init__(self, case: GemmCase, tensors: dict[str, torch.Tensor | None], device: str):
        self.case = case
        self.inputs = {name: None if x is None else x.to(device) for name, x in tensors.items()}
        self.outputs = {"Y": torch.full((case.m, case.n), torch.nan, dtype=dtype_of(case.dtype), device=device)}

    def run(self, variant: str | None = None, threads: int | None = None, **options: object) -> dict[str, object]:
        return run(_core.gemm, _core.plan_gemm, self, variant, threads, options)

    def check(self, reference: torch.Tensor, naive: torch.Tensor) -> None:
        precision.assert_accurate(self.outputs["Y"].cpu(), reference, naive, dtype_of(self.case.dtype), "Y")


# ---- both ----


def run(
    run_op, plan_op, call, variant: str | None, threads: int | None, options: dict[str, object]
) -> dict[str, object]:
    """Runs a call; on a GPU with a poisoned workspace on torch's current stream (left unsynchronised)."""
    output = next(iter(call.outputs.values()))
    if output.is_cuda:
        attributes = call.case.attributes()
        plan = plan_op(attributes, call.inputs, _core.gpu_device(output.device.index), variant=variant)
        call.workspace = torch.full((max(plan["workspace_bytes"], 1),), 0xFF, dtype=torch.uint8, device=output.device)
        options = {"workspace": call.workspace, "stream": torch.cuda.current_stream().cuda_stream} | options
    return run_op(call.case.attributes(), call.inputs, call.outputs, variant=variant, threads=threads, **options)


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaNs included."""
    integer = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return torch.equal(x.cpu().contiguous().view(integer), y.cpu().contiguous().view(integer))


# Some GPU variants ask for libraries that only a GPU machine has.
BACKENDS = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def check_every_variant_is_tested(op: str, backend: str, cases: list, fewest: int) -> None:
    """Every variant of `backend` takes at least `fewest` cases on a machine that has all it asks for."""
    counts = collections.Counter(name for _, name, _ in supporting(op, cases, isa="avx512", host_gemm=True))
    variants = [v for v in _core.variants() if (v["op"], v["backend"]) == (op, backend)]
    assert variants, f"this build has no {backend} variants of {op}"
    for v in variants:
        assert counts[v["name"]] >= fewest, f"{v['name']} takes {counts[v['name']]} of {len(cases)} cases"


def check_every_case_is_taken(op: str, cases: list, second_variable: str, second_type: str) -> None:
    """Each case in a signature's types is taken on that signature's backend (if this build has that backend)."""
    spec = next(s for s in _core.op_specs() if s["name"] == op)
    taken = {(backend, case) for backend, _, case in supporting(op, cases)}
    built = {v["backend"] for v in _core.variants() if v["op"] == op}
    untaken, asked = [], 0
    for signature in spec["signatures"]:
        types = signature["types"]
        for case in cases:
            if signature["backend"] in built and (case.dtype, getattr(case, second_type)) == (
                types["T"],
                types[second_variable],
            ):
                asked += 1
                if (signature["backend"], case) not in taken:
                    untaken.append(f"{signature['backend']}: {case.id}")
    assert asked > 0
    assert not untaken, f"{len(untaken)} cases that no variant takes: {untaken[:10]}"
