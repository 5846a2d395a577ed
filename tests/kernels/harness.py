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
from reference.cache import LIMITS, assert_stored, quantise
from reference.gemm import gemm as reference_gemm
from reference.gemm import pack_int4, weight_values

from fdpp_ort import _core

ATTENTION, GEMM = (spec["name"] for spec in _core.op_specs())


def dtype_of(name: str) -> torch.dtype:
    return torch.float8_e4m3fn if name == "float8e4m3fn" else getattr(torch, name)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """Memory that must not be read: NaN, of int8 a large number."""
    if dtype == torch.int8:
        return torch.full(shape, 113, dtype=dtype, device=device)
    return torch.full(shape, torch.nan, device=device).to(dtype)


def part_of_wider_rows(rows: torch.Tensor, gap: int) -> torch.Tensor:
    """The same rows, each after `gap` elements of poison; the memory ends where the last row does."""
    m, k = rows.shape
    wide = poisoned((m, gap + k), rows.dtype, rows.device)
    wide[:, gap:] = rows
    return wide[:, gap:]


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
        types = {"B": dtype_of(case.weight_dtype), "zero_points": torch.uint8}
        inputs = {
            name: None if shape is None else torch.empty(shape, dtype=types.get(name, t))
            for name, shape in case.shapes().items()
        }
        return inputs | {"A": part_of_wider_rows(inputs["A"], case.row_gap)}
    heads = case.kv_heads * case.head_size
    past = None
    if case.cache != "none":
        past = torch.empty(
            case.batch, case.kv_heads, case.past_capacity, case.head_size, dtype=dtype_of(case.cache_dtype)
        )
    tokens = (case.batch, case.query_length)
    columns = case.q_heads * case.head_size + (2 * heads if case.packed else 0)
    new = None if case.packed else torch.empty(*tokens, heads, dtype=t)
    caches = torch.empty(case.total_length, case.rotary_dim // 2, dtype=t) if case.rotary_dim else None
    norm = torch.empty(case.head_size, dtype=t) if case.norm else None
    scale = torch.empty(scale_shape(case)) if case.quantized else None
    return {
        "query": torch.empty(*tokens, columns, dtype=t),
        "key": new,
        "value": new,
        "past_key": past,
        "past_value": past,
        "seqlens_k": torch.empty(case.batch, dtype=torch.int32),
        "total_sequence_length": case.total_length,
        "cos_cache": caches,
        "sin_cache": caches,
        "position_ids": None if case.positions == "slots" else torch.empty(tokens, dtype=torch.int64),
        "attention_bias": None if case.bias == "none" else torch.empty(case.bias_shape, dtype=t),
        "head_sink": torch.empty(case.q_heads, dtype=t) if case.sink else None,
        "k_scale": scale,
        "v_scale": scale,
        "q_norm": norm,
        "k_norm": norm,
        "phi": torch.empty(case.q_heads) if case.softmax_mode == "unified" else None,
    }


def scale_shape(case: AttentionCase) -> tuple[int, ...]:
    return (1, case.kv_heads, 1, case.head_size) if case.quantization == "per_channel" else (1,)


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
    """Random inputs on the CPU in the op's types; cache slots that hold no token are poisoned."""
    t, c = dtype_of(case.dtype), dtype_of(case.cache_dtype)
    past_shape = (case.batch, case.kv_heads, case.past_capacity, case.head_size) if case.cache != "none" else None
    tokens = (case.batch, case.query_length)
    unified = case.softmax_mode == "unified"
    query, key, value, past_key, past_value, sink, bias, hidden, q_norm, k_norm, phi, k_spread, v_spread = random(
        case,
        (*tokens, case.q_heads, case.head_size),
        (*tokens, case.kv_heads, case.head_size),
        (*tokens, case.kv_heads, case.head_size),
        past_shape,
        past_shape,
        (case.q_heads,) if case.sink else None,
        case.bias_shape,
        case.bias_shape,
        (case.head_size,) if case.norm else None,
        (case.head_size,) if case.norm else None,
        (case.q_heads,) if unified else None,
        scale_shape(case) if case.quantized else None,
        scale_shape(case) if case.quantized else None,
    )

    def stored(x: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor | None:
        if x is None:
            return None
        x = x.to(c) if scale is None else quantise(x.double(), scale, c)
        for b, length in enumerate(case.lengths):
            unused = x[b, :, 0 if case.prompt else length - case.query_length :]
            unused.copy_(poisoned(unused.shape, c, "cpu"))
        return x

    # The largest numbers stand for values of 2 to 6 standard deviations: some saturate.
    k_scale, v_scale = (None if x is None else (4 + 2 * torch.tanh(x)) / LIMITS[c][1] for x in (k_spread, v_spread))
    cos = sin = position_ids = None
    if case.rotary_dim:
        frequencies = 10000.0 ** (-torch.arange(0, case.rotary_dim, 2) / case.rotary_dim)
        angles = torch.arange(case.total_length)[:, None] * frequencies
        cos, sin = angles.cos().to(t), angles.sin().to(t)
    if bias is not None:
        bias = bias.masked_fill(hidden > 1.5, -torch.inf)
    if case.positions == "given":
        position_ids = query[:, :, 0, 0].mul(1000).long() % case.total_length
    elif case.positions == "left_padded":
        padding = torch.tensor([length * b // 3 for b, length in enumerate(case.lengths)])
        slots = torch.tensor(case.lengths)[:, None] - case.query_length + torch.arange(case.query_length)
        position_ids = (slots - padding[:, None]).clamp(min=0)
        bias = bias.masked_fill(torch.arange(case.total_length) < padding[:, None, None, None], -torch.inf)
    return AttentionTensors(
        query.to(t),
        key.to(t),
        value.to(t),
        stored(past_key, k_scale),
        stored(past_value, v_scale),
        case.lengths,
        case.prompt,
        cos,
        sin,
        None if sink is None else sink.to(t),
        case.rotary == "interleaved",
        case.scale,
        case.softcap,
        case.window,
        position_ids,
        None if bias is None else bias.to(t),
        None if q_norm is None else (1 + q_norm / 4).to(t),
        None if k_norm is None else (1 + k_norm / 4).to(t),
        key_scale=k_scale,
        value_scale=v_scale,
        phi=phi,
    )


@functools.lru_cache(maxsize=2)
def expected_attention(
    t: AttentionTensors, case: AttentionCase, stored: tuple[bytes, bytes] | None = None
) -> tuple[AttentionResult, AttentionResult]:
    """(reference, naive) over tensors that change no more. `stored`: the new tokens' numbers in an 8-bit cache."""
    numbers = None
    if stored is not None:
        shape = (case.batch, case.kv_heads, case.query_length, case.head_size)
        numbers = tuple(torch.frombuffer(bytearray(x), dtype=dtype_of(case.cache_dtype)).view(shape) for x in stored)
    plain = precision.naive(dtype_of(case.dtype), dtype_of(case.cache_dtype))
    return reference_attention(t, precision.EXACT, numbers), reference_attention(t, plain, numbers)


class AttentionCall:
    """The tensors of one call on a device: inputs as the op takes them, outputs poisoned."""

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
            "position_ids": on_device(tensors.position_ids),
            "attention_bias": on_device(tensors.bias),
            "head_sink": on_device(tensors.sink),
            "k_scale": on_device(tensors.key_scale),
            "v_scale": on_device(tensors.value_scale),
            "q_norm": on_device(tensors.q_norm),
            "k_norm": on_device(tensors.k_norm),
            "phi": on_device(tensors.phi),
        }
        present = past
        if case.cache != "in_place":
            shape = (case.batch, case.kv_heads, case.capacity, case.head_size)
            present = [poisoned(shape, dtype_of(case.cache_dtype), device) for _ in range(2)]
        columns = case.q_heads * case.head_size
        output = poisoned((case.batch, case.query_length, columns), dtype_of(case.dtype), device)
        self.outputs = {"output": output, "present_key": present[0], "present_value": present[1]}

    def run(self, variant: str | None = None, threads: int | None = None, **options: object) -> dict[str, object]:
        return run(_core.attention, _core.plan_attention, self, variant, threads, options)

    def heads(self) -> torch.Tensor:
        """The output on the CPU, [B, S, Hq, D]."""
        return self.outputs["output"].cpu().unflatten(2, (self.case.q_heads, self.case.head_size))

    def appended(self, name: str) -> torch.Tensor:
        """What present_key or present_value holds for the new tokens, [B, Hkv, S, D] on the CPU."""
        present, case = self.outputs[name].cpu(), self.case
        first = [0 if case.prompt else length - case.query_length for length in case.lengths]
        return torch.stack([row[:, n : n + case.query_length] for row, n in zip(present, first, strict=True)])

    def expected(self) -> tuple[AttentionResult, AttentionResult]:
        """(reference, naive); where the cache has 8 bits, over what the call stored in it."""
        stored = None
        if self.case.quantized:
            numbers = (self.appended(name) for name in ("present_key", "present_value"))
            stored = tuple(x.contiguous().view(torch.uint8).numpy().tobytes() for x in numbers)
        return expected_attention(self.tensors, self.case, stored)

    def check(self) -> None:
        """Output, new cache entries and all that must not change."""
        reference, naive = self.expected()
        # A head's output is an average of values: the more of them, the smaller.
        precision.assert_accurate(
            self.heads(),
            reference.output,
            naive.output,
            dtype_of(self.case.dtype),
            "output",
            size=reference.output.abs().amax(-1, keepdim=True),
        )
        t = self.tensors
        self._check_cache("key", reference.new_key, naive.new_key, t.key_scale, t.cos is None and t.k_norm is None)
        self._check_cache("value", reference.new_value, naive.new_value, t.value_scale, True)

    def _check_cache(
        self, name: str, reference: torch.Tensor, naive: torch.Tensor, scale: torch.Tensor | None, as_given: bool
    ) -> None:
        """New tokens, past tokens and free slots; `as_given`: nothing is computed of what is stored."""
        case, present = self.case, self.outputs[f"present_{name}"].cpu()
        before, appended = getattr(self.tensors, f"past_{name}"), self.appended(f"present_{name}")
        for b, length in enumerate(case.lengths):
            past = 0 if case.prompt else length - case.query_length
            what = f"present_{name}[{b}]"
            # Padding of a prompt may be appended or not: nobody reads it.
            new, exact, plain = (x[b : b + 1, :, : length - past] for x in (appended, reference, naive))
            if scale is None:
                precision.assert_accurate(new, exact, plain, new.dtype, f"{what} (new tokens)")
            else:
                size = exact.abs() if as_given else exact.abs().amax(-1, keepdim=True).expand_as(exact)
                assert_stored(new, exact, plain, scale, size, f"{what} (new tokens)")
            if past:
                assert same_bits(present[b, :, :past], before[b, :, :past]), f"{what}: past tokens changed"
            end = case.query_length if case.prompt else length
            if case.cache == "in_place":
                assert same_bits(present[b, :, end:], before[b, :, end:]), f"{what}: slots beyond {end} changed"


# ---- GEMM ----


@functools.lru_cache(maxsize=2)
def gemm_tensors(case: GemmCase) -> dict[str, torch.Tensor | None]:
    """Random inputs on the CPU in the op's types, by input name."""
    shapes = case.shapes()
    t = dtype_of(case.dtype)
    names = ("A", "scales", "bias", "residual", "norm_weight", "norm_bias")
    a, scales, bias, residual, norm_weight, norm_bias = random(case, *(shapes[name] for name in names))
    if case.norm == "layer":
        a += 1  # a mean that counts
    (b,) = random((case, "B"), (case.weight_rows, case.k))
    generator = torch.Generator().manual_seed(zlib.crc32(repr(case).encode()))
    zero_points = None
    if case.weight_format == "int4":
        # Numbers and zero points of all sizes, also in what pads a row's end.
        shape = (case.weight_rows, case.blocks * case.block_size)
        b = pack_int4(torch.randint(0, 16, shape, generator=generator))
        if case.zero_points:
            zero_points = torch.randint(0, 256, shapes["zero_points"], generator=generator, dtype=torch.uint8)
    elif case.weight_format == "int8":
        b = (b * 40).round().clamp(-128, 127)
    if scales is not None:
        scales = 0.1 + torch.sigmoid(scales) / 5

    return {
        "A": a.to(t),
        "B": b.to(dtype_of(case.weight_dtype)),
        "scales": None if scales is None else scales.to(t),
        "zero_points": zero_points,
        "bias": None if bias is None else bias.to(t),
        "residual": None if residual is None else residual.to(t),
        "norm_weight": None if norm_weight is None else (1 + norm_weight / 4).to(t),
        "norm_bias": None if norm_bias is None else norm_bias.to(t),
    }


@functools.lru_cache(maxsize=2)
def expected_gemm(case: GemmCase) -> tuple[torch.Tensor, torch.Tensor]:
    """(reference, naive) over gemm_tensors(case), each [M, N]."""
    return expect_gemm(case, gemm_tensors(case))


def expect_gemm(case: GemmCase, t: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    def compute(how: precision.Precision, rounded_block: int) -> torch.Tensor:
        return reference_gemm(
            t["A"],
            weight_values(t["B"], t["scales"], t["zero_points"], case.k, case.block_size, how),
            t["bias"],
            t["residual"],
            how,
            activation=case.activation,
            norm=case.norm or "rms",
            norm_weight=t["norm_weight"],
            norm_bias=t["norm_bias"],
            rounded_block=rounded_block,
        )

    # What accuracy_level 4 permits is part of the naive computation's error.
    rounded_block = case.block_size if case.accuracy_level == 4 else 0
    return compute(precision.EXACT, 0), compute(precision.naive(dtype_of(case.dtype)), rounded_block)


class GemmCall:
    """The tensors of one call on a device, the output poisoned with NaN."""

    def __init__(self, case: GemmCase, tensors: dict[str, torch.Tensor | None], device: str):
        self.case = case
        self.inputs = {name: None if x is None else x.to(device) for name, x in tensors.items()}
        self.inputs["A"] = part_of_wider_rows(self.inputs["A"], case.row_gap)
        self.outputs = {"Y": torch.full((case.m, case.n), torch.nan, dtype=dtype_of(case.dtype), device=device)}

    def run(self, variant: str | None = None, threads: int | None = None, **options: object) -> dict[str, object]:
        return run(_core.gemm, _core.plan_gemm, self, variant, threads, options)

    def check(self, reference: torch.Tensor, naive: torch.Tensor) -> None:
        precision.assert_accurate(self.outputs["Y"].cpu(), reference, naive, dtype_of(self.case.dtype), "Y")


# ---- both ----


def run(
    run_op, plan_op, call, variant: str | None, threads: int | None, options: dict[str, object]
) -> dict[str, object]:
    """Runs a call with random bytes for a workspace; on a GPU on torch's current stream (left unsynchronised)."""
    output = next(iter(call.outputs.values()))
    attributes = call.case.attributes()
    if output.is_cuda:
        device = _core.gpu_device(output.device.index)
        options = {"stream": torch.cuda.current_stream().cuda_stream} | options
    else:
        device = _core.cpu_device() | ({} if threads is None else {"threads": threads})
    plan = plan_op(attributes, call.inputs, device, variant=variant, split=options.get("split"))
    bytes_needed = plan["workspace_bytes"]
    call.workspace = random_bytes(bytes_needed, output.device)
    options = {"workspace": call.workspace, "variant": variant, "threads": threads} | options
    return run_op(attributes, call.inputs, call.outputs, **options)


def random_bytes(count: int, device: torch.device) -> torch.Tensor:
    """At least one byte, aligned as a workspace must be."""
    alignment = 256
    padded = torch.randint(0, 256, (count + alignment,), dtype=torch.uint8, device=device)
    start = -padded.data_ptr() % alignment
    return padded[start : start + max(count, 1)]


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaNs included."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    return torch.equal(x.cpu().contiguous().view(integer), y.cpu().contiguous().view(integer))


# What a processor and a runtime can have that variants ask for.
EVERYTHING = {"isa": "avx512", "avx_vnni": True, "avx512_vnni": True, "host_gemm": True}
# Some GPU variants ask for libraries that only a GPU machine has.
BACKENDS = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def check_every_variant_is_tested(op: str, backend: str, cases: list, fewest: int) -> None:
    """Every variant of `backend` takes at least `fewest` cases on a machine that has all it asks for."""
    counts = collections.Counter(name for _, name, _ in supporting(op, cases, **EVERYTHING))
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
