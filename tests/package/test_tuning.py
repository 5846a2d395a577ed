"""fdpp-tune: from a model or shapes to a table that dispatch follows, on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import H200

import fdpp_ort
import fdpp_ort.tuning.attention
from fdpp_ort import _core
from fdpp_ort.cli import tune as tune_command
from fdpp_ort.generation import Decoder, load_model
from fdpp_ort.generation.model import TABLE_NAME
from fdpp_ort.tuning import (
    AttentionShape,
    Measurements,
    Product,
    analyse,
    attention_from_model,
    attention_from_text,
    from_model,
    from_text,
    tune,
    write_table,
)
from fdpp_ort.tuning.analysis import analyse_attention
from fdpp_ort.tuning.attention import BATCHES, CONTEXTS
from fdpp_ort.tuning.attention import points as points_of
from fdpp_ort.tuning.candidates import candidates
from fdpp_ort.tuning.cpu import CpuTimer
from fdpp_ort.tuning.measurements import Candidate, Timed
from fdpp_ort.tuning.operands import weight_values

CPU = _core.cpu_device() | {"host_gemm": True}
ROWS = "1,2,20"
QUICK = ("--device", "cpu", "--rows", ROWS, "--seconds", "0.001", "--pool", "1")


@pytest.fixture(autouse=True)
def no_tables():
    """Leaves no table in force behind."""
    yield
    fdpp_ort.load_table("")


INT4 = {"weight_format": "int4", "block_size": 32}


def plan_int4(m: int, n: int, k: int, device: dict = CPU, dtype: type = np.float32, **attributes: int) -> dict:
    blocks = -(-k // 32)
    b, scales = np.empty((n, 16 * blocks), np.uint8), np.empty((n, blocks), dtype)
    inputs = {"A": np.empty((m, k), dtype), "B": b, "scales": scales}
    return _core.plan_gemm(INT4 | {"N": n, "K": k} | attributes, inputs, device)


def plan(m: int, n: int, k: int) -> dict:
    inputs = {"A": np.empty((m, k), np.float32), "B": np.empty((n, k), np.float32)}
    return _core.plan_gemm({"N": n, "K": k, "weight_format": "f32"}, inputs, CPU)


# ---- inflection points ----

ROWS_TIMED = (1, 2, 4, 8, 16, 32)


def timed(kind: str, microseconds: float, **split: int) -> Timed:
    return Timed(Candidate.of(kind, f"{kind}_kernel", split), microseconds)


def curves(gemv, flat, large) -> dict[int, list[Timed]]:
    """Times from functions of M; None: does not take it."""
    functions = {"gemv": gemv, "flat": flat, "large": large}
    return {
        m: [timed(kind, us) for kind, f in functions.items() if (us := f(m)) is not None] for m in ROWS_TIMED
    }  # fmt: skip


def points(times: dict[int, list[Timed]]) -> tuple[int, int]:
    inflection = analyse(times)
    return inflection.m1, inflection.m2


def test_inflection_points_lie_where_curves_cross() -> None:
    times = curves(lambda m: 5 + 3 * m if m <= 4 else None, lambda m: 10 + m // 9 * 2, lambda m: 14)
    assert points(times) == (2, 17)
    assert [(r.first, r.candidate.kind) for r in analyse(times).ranges] == [(1, "gemv"), (2, "flat"), (17, "large")]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ((lambda m: None, lambda m: 5, lambda m: 9), (1, 33)),  # no GEMV; the library beyond what was timed
        ((lambda m: 5, lambda m: 9, lambda m: 99), (33, 33)),
        ((lambda m: 9, lambda m: 9, lambda m: 5), (1, 1)),
        ((lambda m: 9, lambda m: 5, lambda m: None), (1, 33)),
        ((lambda m: None, lambda m: 9 if m == 2 else 5, lambda m: 5 if m == 2 else 4 if m > 8 else 9), (1, 9)),
        ((lambda m: None, lambda m: 5, lambda m: 4 if m > 4 else 9 if m < 32 else 50), (1, 5)),
    ],
)
def test_kinds_that_never_win_and_noise(curve, expected: tuple[int, int]) -> None:
    assert points(curves(*curve)) == expected


def test_beyond_what_was_timed_the_library_runs() -> None:
    last = analyse(curves(lambda m: None, lambda m: 5, lambda m: 9)).ranges[-1]
    assert (last.first, last.candidate.kind) == (33, "large")


def test_a_split_stays_until_another_is_worth_it() -> None:
    times = {
        1: [timed("flat", 10, pieces=2), timed("flat", 11, pieces=4)],
        2: [timed("flat", 10, pieces=2), timed("flat", 9.9, pieces=4)],
        4: [timed("flat", 10, pieces=2), timed("flat", 8, pieces=4)],
    }
    ranges = [(r.first, dict(r.candidate.split)) for r in analyse(times).ranges]
    assert ranges == [(1, {"pieces": 2}), (3, {"pieces": 4})]


def test_one_epilogue() -> None:
    assert [p.epilogue for p in from_text(["64,72"], "cpu", "f32", ["plain"])] == ["plain"]


def test_a_librarys_algorithm_holds_where_it_has_the_same_number() -> None:
    times = {m: [timed("large", 10), timed("large", 5, algorithm=3)] for m in (4, 8, 40, 60)}
    ranges = [(r.first, dict(r.candidate.split).get("algorithm", 0)) for r in analyse(times).ranges]
    assert ranges == [(1, 3), (9, 0), (33, 3), (41, 0), (49, 3), (61, 0)]


def test_a_kernels_algorithm_is_no_number_of_a_library() -> None:
    times = {m: [timed("flat", 5, pieces=2, algorithm=1), timed("flat", 9, pieces=2)] for m in (4, 8)}
    ranges = [(r.first, dict(r.candidate.split)) for r in analyse(times).ranges]
    assert ranges == [(1, {"pieces": 2, "algorithm": 1})]


# ---- ranges of attention ----


def pieces(**microseconds: float) -> list[Timed]:
    """Times by the number of pieces: pieces(p1=3.0, p4=2.0)."""
    return [timed("", us, pieces=int(name[1:])) for name, us in microseconds.items()]


def attention_ranges(times: dict[tuple[int, int], list[Timed]]) -> list[tuple[int, int, int]]:
    """(batch, context, pieces)."""
    return [(r.batch, r.context, dict(r.candidate.split).get("pieces", 1)) for r in analyse_attention(times)]


def test_what_was_found_holds_from_beyond_what_lies_below() -> None:
    short, long = pieces(p1=5, p4=9), pieces(p1=9, p4=5)
    times = {(1, 256): short, (1, 1024): long, (8, 256): short, (8, 1024): short, (8, 4096): long}
    assert attention_ranges(times) == [(1, 1, 1), (1, 257, 4), (2, 1, 1), (2, 1025, 4)]
    assert attention_ranges({(4, 1024): long}) == [(1, 1, 4)], "the first holds for all below"


def test_neighbours_with_the_same_choice_are_one_range() -> None:
    one, four = pieces(p1=5, p4=9), pieces(p1=9, p4=5)
    times = {(1, 256): one, (1, 1024): one, (1, 4096): four}
    times |= {(2, 256): one, (2, 1024): one, (2, 4096): four}
    times |= {(4, 256): one, (4, 1024): one, (4, 4096): one}
    assert attention_ranges(times) == [(1, 1, 1), (1, 1025, 4), (3, 1, 1)]


def test_a_split_of_attention_stays_until_another_is_worth_it() -> None:
    times = {
        (1, 256): pieces(p1=10, p2=11),
        (1, 1024): pieces(p1=10, p2=9.9),
        (1, 4096): pieces(p1=10, p2=9.7),
        (2, 256): pieces(p1=10, p2=9.9),
        (2, 1024): pieces(p2=10, p4=9.9),
    }
    assert attention_ranges(times) == [(1, 1, 1), (1, 1025, 2), (2, 1, 1), (2, 257, 4)]


# ---- what is tuned ----


def test_products_of_a_model(fdpp_folder, original_folder) -> None:
    ours, original = from_model(fdpp_folder, "cpu"), from_model(original_folder / "model.onnx", "cpu")
    assert ours == original
    assert [(p.dtype, p.weight_format, p.epilogue) for p in ours] == [("float32", "f32", "plain")]
    assert [p.weight_format for p in from_model(fdpp_folder, "cpu", "bf16")] == ["bf16"]
    assert [p.dtype for p in from_model(fdpp_folder, "cuda", "f16")] == ["float16"]


def test_products_by_shape() -> None:
    assert from_text(["64,32", "64,32"], "cpu", "f16") == [
        Product(64, 32, "float32", "f16", "plain"),
        Product(64, 32, "float32", "f16", "added"),
    ]


def write_quantised_model(path: Path) -> Path:
    """Nodes of every quantised format; nothing in it runs. int4 twice, with blocks of two sizes."""
    floats, bf16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
    nodes, initializers = [], []
    for index, (scales, inputs, attributes) in enumerate(
        (
            (floats, 3, {"N": 64, "weight_format": "int4", "block_size": 128, "accuracy_level": 4}),
            (floats, 3, {"N": 64, "weight_format": "int4", "block_size": 32, "accuracy_level": 4}),
            (floats, 3, {"N": 64, "weight_format": "int4", "block_size": 16, "accuracy_level": 1}),
            (floats, 6, {"N": 80, "weight_format": "int8", "accuracy_level": 4}),
            (bf16, 3, {"N": 96, "weight_format": "fp8", "activation": "silu_mul"}),
        )
    ):
        initializers.append(onnx.helper.make_tensor(f"scales{index}", scales, [1], [1.0]))
        names = ["a", f"b{index}", f"scales{index}", "", "", "a"][:inputs]
        nodes.append(onnx.helper.make_node("FdppFlatGemm", names, [f"y{index}"], domain="fdpp", K=48, **attributes))
    graph = onnx.helper.make_graph(nodes, "quantised", [], [], initializers)
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("fdpp", 1)]), path)
    return path


def test_quantised_products_of_a_model(tmp_path) -> None:
    path = write_quantised_model(tmp_path / "model.onnx")
    titles = [
        "N=64 K=48 int4/16",
        "N=64 K=48 int4/32 accuracy 4",
        "N=64 K=48 int4/128 accuracy 4",
        "N=80 K=48 int8 + residual",
        "N=192 K=48 fp8",
    ]
    on_cpu, on_gpu = from_model(path, "cpu"), from_model(path, "cuda")
    assert [p.title for p in on_cpu] == titles
    assert {p.dtype for p in on_cpu} == {"float32"}
    blocks = [f"N=64 K=48 int4/{size}" for size in (16, 32, 128)]
    assert [p.title for p in on_gpu] == [*blocks, *titles[3:]], "a GPU's kernels know no accuracy_level"
    assert [p.dtype for p in on_gpu] == [*["float16"] * 4, "bfloat16"]
    assert {p.block_size for p in from_model(path, "cuda", "int4")} == {16, 32, 128}
    assert {p.dtype for p in from_model(path, "cuda", "bf16")} == {"bfloat16"}


@pytest.mark.parametrize(
    ("weight_format", "stored", "scales"),
    [("int8", (64, 72), (64,)), ("fp8", (64, 72), (64,)), ("int4", (64, 48), (64, 3))],
)
def test_quantised_products_by_shape(weight_format: str, stored: tuple, scales: tuple) -> None:
    (on_cpu, _), (on_gpu, _) = (from_text(["64,72"], backend, weight_format) for backend in ("cpu", "cuda"))
    assert (on_cpu.dtype, on_gpu.dtype) == ("float32", "float16")
    assert (on_cpu.stored_shape, on_cpu.scales_shape) == (stored, scales)


def test_attention_by_heads() -> None:
    (shape,) = attention_from_text(["32,8,128", "32,8,128"])
    assert shape == AttentionShape(32, 8, 128, "float16", "float16")
    assert shape.title == "attention 32/8 D=128 f16"
    (shape,) = attention_from_text(["32,8,128"], "bf16", "fp8")
    assert (shape.dtype, shape.cache_dtype) == ("bfloat16", "float8e4m3fn")
    assert [s.dtype for s in attention_from_text(["32,8,128"], "int4", "int8")] == ["float16"]
    with pytest.raises(fdpp_ort.FdppError, match="takes float16 and bfloat16, not float32: give --dtype"):
        attention_from_text(["32,8,128"], "f32")


def write_attention_model(path: Path) -> Path:
    """Nodes over caches of every type, and of sizes unknown and not taken; nothing in it runs."""
    types = onnx.TensorProto
    nodes, inputs, values = [], [], []
    for index, (cache, cos, op, domain) in enumerate(
        (
            (types.FLOAT16, None, "FdppAttention", "fdpp"),
            (types.FLOAT16, None, "GroupQueryAttention", "com.microsoft"),
            (types.INT8, types.BFLOAT16, "FdppAttention", "fdpp"),
            (types.FLOAT8E4M3FN, types.FLOAT16, "FdppAttention", "fdpp"),
            (types.FLOAT, None, "Attention", "com.microsoft"),
        )
    ):
        names = ["q", "k", "v", f"past{index}", f"past{index}", "lengths", "total", f"cos{index}" if cos else ""]
        heads = {"num_heads": 8, "kv_num_heads": 2}
        nodes.append(onnx.helper.make_node(op, names, [f"y{index}"], domain=domain, **heads))
        past = onnx.helper.make_tensor_value_info(f"past{index}", cache, ["batch", 2, "length", 64])
        (values if index == 0 else inputs).append(past)
        if cos:
            inputs.append(onnx.helper.make_tensor_value_info(f"cos{index}", cos, [64, 32]))
    nodes.append(onnx.helper.make_node("FdppAttention", ["q", "", "", "unknown"], ["z"], domain="fdpp", **heads))
    nodes.append(
        onnx.helper.make_node("GroupQueryAttention", ["q", "k", "v", "odd"], ["o"], domain="com.microsoft", **heads)
    )
    inputs.append(onnx.helper.make_tensor_value_info("odd", types.FLOAT16, ["batch", 2, "length", 60]))
    graph = onnx.helper.make_graph(nodes, "attention", inputs, [], value_info=values)
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("fdpp", 1)]), path)
    return path


def test_attention_of_a_model(tmp_path, fdpp_folder, original_folder) -> None:
    path = write_attention_model(tmp_path / "model.onnx")
    types = [(s.dtype, s.cache_dtype) for s in attention_from_model(path)]
    assert types == [("bfloat16", "int8"), ("float16", "float16"), ("float16", "float8e4m3fn")]
    assert {s.heads for s in attention_from_model(path)} == {"8/2 D=64"}
    assert {(s.dtype, s.cache_dtype) for s in attention_from_model(path, "bf16", "fp8")} == {
        ("bfloat16", "float8e4m3fn")
    }
    # Of float32 no GPU's kernel is.
    shapes = [AttentionShape(4, 2, 32, "float16", "float16")]
    assert attention_from_model(fdpp_folder) == attention_from_model(original_folder) == shapes


def test_points_fit_the_memory() -> None:
    (plain,), (small,) = (attention_from_text(["32,8,128"], "f16", cache) for cache in (None, "int8"))
    assert points_of(plain, 1 << 60) == [(batch, context) for batch in BATCHES for context in CONTEXTS]
    assert plain.cache_bytes(4, 1024) == 2 * small.cache_bytes(4, 1024) == 2 * 4 * 8 * 1024 * 128 * 2
    fits = points_of(plain, plain.cache_bytes(4, 4096))
    assert (4, 4096) in fits and (1, 16384) in fits and (64, 256) in fits
    assert (8, 4096) not in fits and (1, 65536) not in fits


@pytest.mark.parametrize("cache", ["int8", "float8e4m3fn"])
def test_the_reference_of_attention(cache: str) -> None:
    torch = pytest.importorskip("torch")
    shape = AttentionShape(6, 2, 40, "float32", cache)
    stored = torch.int8 if cache == "int8" else torch.float8_e4m3fn
    keys, values = (torch.randn(3, 2, 100, 40).div(shape.scale).clamp(-127, 127).to(stored) for _ in range(2))
    query, new = torch.randn(3, 1, 240), torch.randn(3, 1, 80)
    inputs = {"query": query, "key": new, "value": new, "past_key": keys, "past_value": values}
    inputs |= {"seqlens_k": torch.full((3,), 99, dtype=torch.int32), "total_sequence_length": 100}
    inputs |= dict.fromkeys(("k_scale", "v_scale"), torch.tensor([shape.scale]))
    output = torch.empty(3, 1, 240)
    _core.attention(shape.attributes, inputs, {"output": output, "present_key": keys, "present_value": values})
    expected = fdpp_ort.tuning.attention.reference(shape, query, keys, values).view(3, 1, 240)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)


def test_candidates_round_where_they_may() -> None:
    device = CPU | {"isa": "avx2", "avx_vnni": True}
    vnni = [
        {c.variant for c in candidates(Product(64, 32, "float32", "int4", "plain", level, 32), 1, device)}
        >= {"cpu_avx2_vnni_gemv", "cpu_avx2_vnni_flat"}
        for level in (0, 4)
    ]
    assert vnni == [False, True]


def test_candidates() -> None:
    """Every variant that takes the problem, here each with one split."""
    product = Product(64, 32, "float32", "f32")
    names = [c.variant for c in candidates(product, 1, CPU)]
    assert names == list(dict.fromkeys(names))
    assert "cpu_runtime_gemm" in names
    assert len(candidates(product, 5, CPU)) <= len(names)
    with pytest.raises(fdpp_ort.FdppError, match="N=64 K=32 f16, M=1: no kernel takes it .*takes float32"):
        candidates(Product(64, 32, "float16", "f16"), 1, CPU)


# ---- measurements ----


class FakeTimer:
    """Counts what it is asked for; the kind that wins depends on M alone."""

    device = CPU

    def __init__(self):
        self.asked = []

    def measure(self, product: Product, m: int, chosen: list[Candidate]) -> list[Timed]:
        self.asked.append((product.n, m))
        costs = {"gemv": 1 + 3 * m, "flat": 5 + m // 9 * 30, "large": 20}
        return [Timed(c, costs[c.kind] * (100 if "scalar" in c.variant else 1)) for c in chosen]


class FakeGpuTimer(FakeTimer):
    """Attention's times, too, here on the device that there is: longer contexts and fewer rows want more pieces."""

    cache_bytes = 1 << 60

    def measure_attention(self, shape: AttentionShape, batch: int, context: int) -> list[Timed]:
        self.asked.append((shape.q_heads, batch, context))
        wanted = max(1, min(context // batch // 1024, 16))
        return [Timed(Candidate.of("", ATTEND, {"pieces": n, "cluster": 1}), 10 + abs(n - wanted)) for n in (1, 4, 16)]


ATTEND = next(v["name"] for v in _core.variants() if (v["op"], v["backend"]) == ("FdppAttention", "cpu"))
SHAPES = [AttentionShape(heads, 2, 64, "float32", "int8") for heads in (4, 8)]


def plan_attention(batch: int, context: int, device: dict = CPU, dtype: type = np.float32) -> dict:
    cache = np.empty((batch, 2, context, 64), np.int8)
    inputs = {
        "query": np.empty((batch, 1, 8 * 64), dtype),
        "past_key": cache,
        "past_value": cache,
        "seqlens_k": np.empty(batch, np.int32),
        "total_sequence_length": context,
        "k_scale": np.ones(1, np.float32),
        "v_scale": np.ones(1, np.float32),
    }
    return _core.plan_attention(SHAPES[0].attributes, inputs, device)


PRODUCTS = [Product(n, 32, "float32", "f32") for n in (64, 128)]


def test_a_run_goes_on_where_it_stopped(tmp_path) -> None:
    path = tmp_path / "t.measured.jsonl"
    whole = FakeTimer()
    tune(PRODUCTS, ROWS_TIMED, whole, Measurements(path, CPU))
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    assert len(lines) == 1 + len(PRODUCTS) * len(ROWS_TIMED)
    # Cut short within the line of the last M but two.
    path.write_text("".join(lines[:-3]) + lines[-3][:40])
    rest = FakeTimer()
    tune(PRODUCTS, ROWS_TIMED, rest, Measurements(path, CPU))
    assert rest.asked == whole.asked[-3:]
    assert path.read_text() == text
    again = FakeTimer()
    tune(PRODUCTS, ROWS_TIMED, again, Measurements(path, CPU))
    assert again.asked == []


def test_attention_goes_on_where_it_stopped(tmp_path) -> None:
    """Beside products, in the same file."""
    path = tmp_path / "t.measured.jsonl"
    whole, steps = FakeGpuTimer(), []
    tune(PRODUCTS, (1, 2), whole, Measurements(path, CPU), lambda *step: steps.append(step), SHAPES)
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    count = len(PRODUCTS) * 2 + len(SHAPES) * len(BATCHES) * len(CONTEXTS)
    assert len(lines) == 1 + count
    assert steps[-1] == ("tuned", count, count)
    assert [step[1] for step in steps] == list(range(count + 1))
    path.write_text("".join(lines[:-3]) + lines[-3][:40])
    rest = FakeGpuTimer()
    measurements = Measurements(path, CPU)
    tune(PRODUCTS, (1, 2), rest, measurements, attention=SHAPES)
    assert rest.asked == whole.asked[-3:]
    assert path.read_text() == text
    assert [product for product, _ in measurements] == PRODUCTS
    assert [shape for shape, _ in measurements.attention()] == SHAPES
    path.write_text(text.replace('"context"', '"contxt"'))
    with pytest.raises(fdpp_ort.FdppError, match="cannot be read as measurements: 'context'"):
        Measurements(path, CPU)


def test_a_table_of_attention_is_followed(tmp_path) -> None:
    measurements = Measurements(tmp_path / "m.jsonl", CPU)
    tune([], (), FakeGpuTimer(), measurements, attention=SHAPES)
    table = tmp_path / "t.json"
    write_table(table, measurements)
    entry = json.loads(table.read_text())["attention"][0]
    assert {k: v for k, v in entry.items() if k != "ranges"} == {
        "q_heads": 4, "kv_heads": 2, "head_size": 64, "dtype": "float32", "cache_dtype": "int8"
    }  # fmt: skip
    before = plan_attention(1, 128)
    fdpp_ort.load_table(table)
    assert plan_attention(1, 128)["reason"] == f"tuned: {table}" != before["reason"]
    # Between contexts and batches that were timed the next larger ones decide.
    for (batch, context), n in {(1, 1024): 1, (1, 1025): 4, (1, 4096): 4, (1, 4097): 16, (3, 5000): 4}.items():
        assert plan_attention(batch, context)["split"]["pieces"] == n


def test_a_table_of_a_gpus_attention_is_read(tmp_path) -> None:
    """By builds without kernels for it, too; what it says is planned where there are some."""
    measurements = Measurements(tmp_path / "m.jsonl", H200)
    shape = AttentionShape(4, 2, 64, "float16", "int8")
    split = {"pieces": 3, "cluster": 2, "blocks_per_multiprocessor": 2}
    measurements.add(shape, (1, 1024), [Timed(Candidate.of("", "cuda_decode_hopper", split), 5.0)])
    table = tmp_path / "t.json"
    write_table(table, measurements)
    fdpp_ort.load_table(table)
    if any(v["backend"] == "cuda" for v in _core.variants()):
        chosen = plan_attention(2, 500, H200, np.float16)
        assert (chosen["variant"], chosen["split"]) == ("cuda_decode_hopper", split)
        assert chosen["reason"] == f"tuned: {table}"


def test_the_summary_has_attention(tmp_path, capsys) -> None:
    measurements = Measurements(tmp_path / "m.jsonl", CPU)
    measurements.add(SHAPES[0], (1, 128), pieces(p1=4, p2=1))
    measurements.add(SHAPES[0], (1, 256), pieces(p1=9, p2=9))
    tune_command._print_summary(measurements)
    shown = capsys.readouterr().out
    assert "4/2 D=64" in shown and "2.00" in shown
    assert "M1" not in shown, "no product was timed"


def test_what_is_hopeless_is_timed_no_more(tmp_path) -> None:
    measurements = Measurements(tmp_path / "m.jsonl", CPU)
    tune(PRODUCTS[:1], (1, 2), FakeTimer(), measurements)
    first, second = measurements.of(PRODUCTS[0]).values()
    others = any("flat" in t.candidate.variant and "scalar" not in t.candidate.variant for t in first)
    assert any("scalar" in t.candidate.variant for t in first)
    assert any("scalar" in t.candidate.variant for t in second) != others
    assert {t.candidate.kind for t in second} == {t.candidate.kind for t in first}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"fdpp_measurements": 1, "library": "0.0.0", "device": {}}\n', "measured as .* this is .*--no-resume"),
        ("[]\n", "measured as"),
        ("nonsense\n", "cannot be read as measurements"),
        ("", "cannot be read as measurements"),
    ],
)
def test_measurements_of_something_else(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(fdpp_ort.FdppError, match=message):
        Measurements(path, CPU)
    Measurements(path, CPU, resume=False)
    Measurements(path, CPU)


def test_damaged_rows(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    tune(PRODUCTS[:1], (1,), FakeTimer(), Measurements(path, CPU))
    path.write_text(path.read_text().replace('"m"', '"n"'))
    with pytest.raises(fdpp_ort.FdppError, match="cannot be read as measurements: 'm'"):
        Measurements(path, CPU)


def test_measurements_of_before_there_were_quantised_weights(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    tune(PRODUCTS[:1], (1,), FakeTimer(), Measurements(path, CPU))
    path.write_text(path.read_text().replace(', "accuracy_level": 0, "block_size": 0', ""))
    assert [product for product, _ in Measurements(path, CPU)] == PRODUCTS[:1]
    assert "block_size" not in path.read_text()


def test_a_wrong_result_ends_the_run(tmp_path, monkeypatch) -> None:
    """One block in two without its scale."""

    def other_values(product: Product, *weights) -> np.ndarray:
        values = weight_values(product, *weights).reshape(-1, product.k // 32, 32)
        values[:, ::2] = 1
        return values.reshape(-1, product.k)

    monkeypatch.setattr("fdpp_ort.tuning.cpu.weight_values", other_values)
    timer = CpuTimer(0.001, 1 << 20)
    with pytest.raises(
        fdpp_ort.FdppError, match=r"N=48 K=64 int4/32, M=2: cpu_\w+ {} is wrong: relative error \d.* less"
    ):
        tune(from_text(["48,64"], "cpu", "int4"), (2,), timer, Measurements(tmp_path / "m.jsonl", timer.device))


def test_one_timer_for_blocks_of_all_sizes() -> None:
    timer = CpuTimer(0.001, 1 << 20)
    for block_size in (16, 32, 64, 128):
        product = Product(48, 200, "float32", "int4", "added", 4, block_size)
        assert timer.measure(product, 2, candidates(product, 2, timer.device))


def test_a_table_is_followed(tmp_path) -> None:
    """At the Ms that were timed, between and beyond them; and near the shapes that were, not far from them."""
    measurements = Measurements(tmp_path / "m.jsonl", CPU)
    tune(PRODUCTS, ROWS_TIMED, FakeTimer(), measurements)
    write_table(tmp_path / "t.json", measurements)
    fdpp_ort.load_table(tmp_path / "t.json")
    kinds = {v["name"]: v["kind"] for v in _core.variants()}
    has_gemv = "gemv" in kinds.values() and any("gemv" in c.kind for c in candidates(PRODUCTS[0], 1, CPU))
    for m, kind in {1: "gemv", 2: "flat", 3: "flat", 8: "flat", 9: "large", 100: "large", 4096: "large"}.items():
        for n, reason in ((64, "tuned: "), (128, "tuned: "), (70, "tuned for a shape near"), (4096, "model of costs")):
            chosen = plan(m, n, 32)
            assert chosen["reason"].startswith(reason)
            if n != 4096:
                assert kinds[chosen["variant"]] == (kind if kind != "gemv" or has_gemv else "flat")


def test_a_table_that_cannot_be_written(tmp_path) -> None:
    measurements = Measurements(tmp_path / "m.jsonl", CPU)
    with pytest.raises(fdpp_ort.FdppError, match="no/t.json: the table cannot be written"):
        write_table(tmp_path / "no" / "t.json", measurements)
    with pytest.raises(fdpp_ort.FdppError, match="the measurements cannot be kept there"):
        Measurements(tmp_path / "no" / "m.jsonl", CPU)


# ---- the command ----


def test_tune_and_resume(command, tmp_path) -> None:
    table, measured = tmp_path / "t.json", tmp_path / "t.measured.jsonl"
    done = command("tune", "--shapes", "48,32", *QUICK, "-o", table)
    assert done.returncode == 0, done.stderr
    assert f"wrote {table}" in done.stdout
    assert "M1" in done.stdout and "48" in done.stdout
    content = json.loads(table.read_text())
    assert content["device"]["name"] == CPU["name"]
    assert [(e["n"], e["k"], e["epilogue"]) for e in content["gemm"]] == [(48, 32, "added"), (48, 32, "plain")]
    fdpp_ort.load_table(table)
    for m in (1, 2, 3, 20, 21, 500):
        assert plan(m, 48, 32)["reason"] == f"tuned: {table}"
    assert plan(500, 48, 32)["variant"] == "cpu_runtime_gemm"

    lines = measured.read_text().splitlines(keepends=True)
    measured.write_text("".join(lines[:3]))
    done = command("tune", "--shapes", "48,32", "96,32", *QUICK, "-o", table)
    assert done.returncode == 0, done.stderr
    resumed = measured.read_text().splitlines(keepends=True)
    assert resumed[:3] == lines[:3]
    assert len(resumed) == 1 + 4 * len(ROWS.split(","))
    assert {entry["n"] for entry in json.loads(table.read_text())["gemm"]} == {48, 96}

    done = command("tune", "--shapes", "48,32", *QUICK, "-o", table, "--no-resume")
    assert done.returncode == 0, done.stderr
    assert {entry["n"] for entry in json.loads(table.read_text())["gemm"]} == {48}


@pytest.mark.parametrize("weight_format", ["f16", "bf16", "int8", "fp8", "int4"])
def test_tune_weights_of_few_bits(command, tmp_path, weight_format: str) -> None:
    done = command("tune", "--shapes", "48,72", *QUICK, "--dtype", weight_format, "-o", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    formats = {(e["dtype"], e["weight_format"]) for e in json.loads((tmp_path / "t.json").read_text())["gemm"]}
    assert formats == {("float32", weight_format)}
    fdpp_ort.load_table(tmp_path / "t.json")
    tuned = weight_format == "int4"
    assert plan_int4(2, 48, 72)["reason"].startswith("tuned: " if tuned else "model of costs")
    assert plan_int4(2, 48, 72, accuracy_level=4)["reason"] == "model of costs"


def test_tune_a_model_of_int4_weights(command, tmp_path) -> None:
    model = write_quantised_model(tmp_path / "model.onnx")
    done = command("tune", "--model", model, *QUICK, "--dtype", "int4")
    assert done.returncode == 0, done.stderr
    assert "int4/128 accuracy 4" in done.stdout
    entries = json.loads((tmp_path / TABLE_NAME).read_text())["gemm"]
    assert [(e["n"], e["block_size"], e.get("accuracy_level")) for e in entries] == [
        *((64, 16, None), (64, 32, 4), (64, 128, 4)),
        *((80, 32, 4), (192, 32, None)),
    ]
    fdpp_ort.load_table(tmp_path / TABLE_NAME)
    for level in (0, 4):
        assert plan_int4(2, 64, 48, accuracy_level=level)["reason"] == f"tuned: {tmp_path / TABLE_NAME}"


def test_a_model_is_tuned_and_then_runs_by_its_table(command, fdpp_folder, tmp_path) -> None:
    folder = shutil.copytree(fdpp_folder, tmp_path / "copy")
    done = command("tune", "--model", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    table = folder / TABLE_NAME
    decoder = Decoder(load_model(folder, "cpu"), 1, 16)
    decoder.prefill(np.array([[3, 1, 4]]))
    reasons = {row["node"]: row["reason"] for row in fdpp_ort.last_plan()}
    assert reasons["head"] == f"tuned: {table}"
    assert json.loads(table.read_text())["attention"] == [], "its attention divides its work itself on a CPU"


def test_a_bad_table_beside_a_model(command, fdpp_folder, tmp_path) -> None:
    folder = shutil.copytree(fdpp_folder, tmp_path / "copy")
    (folder / TABLE_NAME).write_text("{")
    done = command("generate", folder, "--prompt", "w1")
    assert done.returncode == 1
    assert f"fdpp-generate: error: {folder / TABLE_NAME}:1:2: expected text" in done.stderr


def test_a_table_beside_the_library(fdpp_folder, tmp_path) -> None:
    """As onnxruntime-genai loads an exported folder: the library's copy beside the model, nothing of ours in Python."""
    folder = shutil.copytree(fdpp_folder, tmp_path / "copy")
    library = shutil.copy(fdpp_ort.library_path(), folder)
    measurements = Measurements(tmp_path / "m.jsonl", CPU)
    tune(from_model(folder, "cpu"), (1, 8), FakeTimer(), measurements)
    write_table(folder / TABLE_NAME, measurements)
    script = f"""
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library({str(library)!r})
session = onnxruntime.InferenceSession({str(folder / "model.onnx")!r}, options)
feeds = {{}}
for value in session.get_inputs():
    shape = [d if isinstance(d, int) else 1 for d in value.shape]
    if "past" in value.name:
        shape[2] = 0
    feeds[value.name] = numpy.ones(shape, "float32" if value.type == "tensor(float)" else "int64")
session.run(None, feeds)
"""
    environment = {**os.environ, "FDPP_LOG": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"(tuned: {folder / TABLE_NAME})" in done.stderr


def test_the_command_tunes_attention(capsys, monkeypatch, tmp_path) -> None:
    """As on a GPU, but for the times."""
    monkeypatch.setattr(tune_command, "make_timer", lambda *_: FakeGpuTimer())
    table = tmp_path / "t.json"
    arguments = ["--attention", "8,2,64", "4,4,128", "--cache-dtype", "int8", "--device", "cuda", "-o", str(table)]
    assert tune_command.main(arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "8/2 D=64" in shown and "4/4 D=128" in shown and f"wrote {table}" in shown
    entries = [(e["q_heads"], e["dtype"], e["cache_dtype"]) for e in json.loads(table.read_text())["attention"]]
    assert entries == [(4, "float16", "int8"), (8, "float16", "int8")]
    fdpp_ort.load_table(table)


def test_plot(command, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    done = command("tune", "--shapes", "48,32", *QUICK, "-o", tmp_path / "t.json", "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(command, tmp_path) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "matplotlib.py").write_text("raise ImportError('not here')\n")
    plot = ("--plot", tmp_path / "plot.png")
    done = command("tune", "--shapes", "48,32", *QUICK, *plot, path=(absent,))
    assert done.returncode == 1
    assert "fdpp-tune: error: --plot needs matplotlib (not here); pip install matplotlib" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "48x32"], "shape is '48x32', expected N,K, two positive whole numbers"),
        (["--shapes", "48,0"], "shape is '48,0', expected N,K"),
        (["--model", "no-such-file.onnx"], "no-such-file.onnx: cannot be read as an ONNX model"),
        (["--model", "."], "without a genai_config.json, expected one .onnx file, found none"),
        (["--shapes", "48,32", "-o", "no-such-folder/t.json"], "the measurements cannot be kept there"),
        (["--attention", "32,8,128"], "--attention is for a GPU: on a CPU attention's kernels divide their work"),
    ],
)
def test_bad_arguments(command, arguments: list[str], message: str) -> None:
    done = command("tune", *arguments, *QUICK)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "cache", "message"),
    [
        ("32,8", None, "attention is '32,8', expected Q_HEADS,KV_HEADS,HEAD_SIZE, three positive whole numbers"),
        ("32,0,128", None, "attention is '32,0,128', expected Q_HEADS"),
        ("32,x,128", None, "attention is '32,x,128', expected Q_HEADS"),
        ("32,5,128", None, "expected a multiple of 5 query heads"),
        ("32,8,130", None, "expected a head size that is a multiple of 8 up to 256"),
        ("32,8,264", None, "expected a head size that is a multiple of 8 up to 256"),
        ("32,8,128", "bf16", "--cache-dtype is bf16, expected int8, fp8 or the activations' float16"),
    ],
)
def test_bad_attention(text: str, cache: str | None, message: str) -> None:
    with pytest.raises(fdpp_ort.FdppError, match=message):
        attention_from_text([text], None, cache)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --model, --shapes and --attention is required"),
        (["--model", ".", "--attention", "32,8,128"], "--model comes with neither --shapes nor --attention"),
        (["--model", ".", "--shapes", "48,32"], "--model comes with neither --shapes nor --attention"),
        (["--attention", "32,8,128", "--cache-dtype", "f32"], "argument --cache-dtype: invalid choice"),
    ],
)
def test_arguments_that_do_not_go_together(capsys, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        tune_command.main(arguments)
    assert message in capsys.readouterr().err


def test_a_plot_of_attention_alone(capsys) -> None:
    pytest.importorskip("matplotlib")
    assert tune_command.main(["--attention", "32,8,128", "--device", "cuda", "--plot", "plot.png"]) == 1
    assert "--plot draws times over M: give --shapes or --model" in capsys.readouterr().err


def test_a_gpu_that_is_not_there(command) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    done = command("tune", "--shapes", "48,32", "--device", "cuda")
    assert done.returncode == 1
    assert "fdpp-tune: error: tuning for a GPU needs a PyTorch that sees one" in done.stderr


@pytest.mark.gpu
def test_tune_on_a_gpu(command, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    table = tmp_path / "t.json"
    options = ("--device", "cuda", "--rows", "1,2,8,40", "--seconds", "0.01", "--plot", tmp_path / "plot.png")
    done = command("tune", "--shapes", "256,1024", *options, "-o", table)
    assert done.returncode == 0, done.stderr
    fdpp_ort.load_table(table)
    device = _core.gpu_device(0)
    assert json.loads(table.read_text())["device"]["name"] == device["name"]
    for m in (1, 3, 8, 40, 300):
        inputs = {"A": torch.empty(m, 1024, dtype=torch.float16), "B": torch.empty(256, 1024, dtype=torch.float16)}
        chosen = _core.plan_gemm({"N": 256, "K": 1024, "weight_format": "f16"}, inputs, device)
        assert chosen["reason"] == f"tuned: {table}"


@pytest.mark.gpu
@pytest.mark.parametrize("weight_format", ["bf16", "int8", "fp8", "int4"])
def test_tune_other_weights_on_a_gpu(command, tmp_path, weight_format: str) -> None:
    table = tmp_path / "t.json"
    options = ("--device", "cuda", "--rows", "1,8,40", "--seconds", "0.01", "--dtype", weight_format)
    done = command("tune", "--shapes", "256,1000", *options, "-o", table)
    assert done.returncode == 0, done.stderr
    dtype = "bfloat16" if weight_format == "bf16" else "float16"
    entries = json.loads(table.read_text())["gemm"]
    assert {(e["dtype"], e["weight_format"]) for e in entries} == {(dtype, weight_format)}
    if weight_format == "int4":
        fdpp_ort.load_table(table)
        for m in (1, 3, 300):
            assert plan_int4(m, 256, 1000, _core.gpu_device(0), np.float16)["reason"] == f"tuned: {table}"


@pytest.mark.gpu
def test_tune_a_model_of_bfloat16_on_a_gpu(command, tmp_path) -> None:
    """Quantised weights beside bfloat16 activations; int4's in blocks of three sizes."""
    model = write_quantised_model(tmp_path / "model.onnx")
    options = ("--device", "cuda", "--rows", "1,8", "--seconds", "0.01")
    done = command("tune", "--model", model, *options)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / TABLE_NAME).read_text())["gemm"]
    formats = [(e["n"], e["dtype"], e["weight_format"], e.get("block_size")) for e in entries]
    int4 = [(64, "float16", "int4", size) for size in (16, 32, 128)]
    assert formats == [*int4, (80, "float16", "int8", None), (192, "bfloat16", "fp8", None)]


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", ["bf16", "int8", "fp8"])
def test_tune_attention_on_a_gpu(capsys, monkeypatch, tmp_path, cache_dtype: str) -> None:
    monkeypatch.setattr(fdpp_ort.tuning.attention, "BATCHES", (1, 8))
    monkeypatch.setattr(fdpp_ort.tuning.attention, "CONTEXTS", (128, 4096))
    table = tmp_path / "t.json"
    arguments = ["--attention", "8,2,64", "--dtype", "bf16", "--cache-dtype", cache_dtype, "--device", "cuda"]
    assert tune_command.main([*arguments, "--seconds", "0.01", "-o", str(table)]) == 0, capsys.readouterr().err
    assert "8/2 D=64" in capsys.readouterr().out
    (entry,) = json.loads(table.read_text())["attention"]
    assert (entry["q_heads"], entry["dtype"], entry["ranges"][0]["context"]) == (8, "bfloat16", 1)
    fdpp_ort.load_table(table)
    torch = pytest.importorskip("torch")
    (shape,) = attention_from_text(["8,2,64"], "bf16", cache_dtype)
    for batch, context in ((1, 1), (3, 1000), (64, 5000)):
        stored = getattr(torch, {"bf16": "bfloat16", "int8": "int8", "fp8": "float8_e4m3fn"}[cache_dtype])
        cache = torch.empty(shape.cache_shape(batch, context), dtype=stored)
        inputs = {"query": torch.empty(batch, 1, 12 * 64, dtype=torch.bfloat16), "past_key": cache, "past_value": cache}
        inputs |= {"seqlens_k": torch.empty(batch, dtype=torch.int32), "total_sequence_length": context}
        if shape.scale is not None:
            inputs |= dict.fromkeys(("k_scale", "v_scale"), torch.ones(1))
        assert _core.plan_attention(shape.attributes, inputs, _core.gpu_device(0))["reason"] == f"tuned: {table}"
