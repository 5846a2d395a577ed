"""Dispatch tables: what is read, what is refused and why, and what a table decides."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import H200

import fdpp_ort
from fdpp_ort import _core

ATTENTION, GEMM = "FdppAttention", "FdppFlatGemm"
CPU = _core.cpu_device() | {"host_gemm": True}
KEY = {key: CPU[key] for key in ("backend", "name", "isa", "threads")}
HAS_CUDA = any(v["backend"] == "cuda" for v in _core.variants())
OTHER_GPU = {"backend": "cuda", "name": "NVIDIA A100", "compute_capability": 80, "multiprocessors": 108}


def variant(op: str, kind: str) -> str:
    """The last of a kind on the CPU, so that no choice but a table's falls on it where there are several."""
    names = [v["name"] for v in _core.variants() if (v["op"], v["backend"], v["kind"]) == (op, "cpu", kind)]
    return next(name for name in reversed(names) if "scalar" not in name or len(names) == 1)


FLAT, LARGE, ATTEND = variant(GEMM, "flat"), "cpu_runtime_gemm", variant(ATTENTION, "")
TABLE = {
    "fdpp_table": 1,
    "library": "0.1.0",
    "measured": "by hand",
    "device": KEY,
    "gemm": [
        {
            "n": 64,
            "k": 32,
            "dtype": "float32",
            "weight_format": "f32",
            "epilogue": "plain",
            "m1": 1,
            "m2": 5,
            "ranges": [
                {"from": 1, "variant": FLAT, "split": {"pieces": 3}},
                {"from": 3, "variant": FLAT, "split": {"rows": 7, "stages": 2, "algorithm": 4}},
                {"from": 5, "variant": LARGE, "split": {}},
            ],
        }
    ],
    "attention": [
        {
            "q_heads": 4,
            "kv_heads": 2,
            "head_size": 64,
            "dtype": "float32",
            "cache_dtype": "float32",
            "ranges": [
                {"batch": 1, "context": 1, "variant": ATTEND, "split": {"pieces": 2}},
                {"batch": 1, "context": 100, "variant": ATTEND, "split": {"pieces": 3}},
                {"batch": 4, "context": 1, "variant": ATTEND, "split": {"pieces": 4}},
            ],
        }
    ],
}


def changed(*path: str | int, value: object) -> dict:
    """TABLE with one value in it changed; None takes it out."""
    table = copy.deepcopy(TABLE)
    at = table
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return table


@pytest.fixture
def load(tmp_path: pathlib.Path) -> Iterator[Callable[[dict | str | bytes], str]]:
    """load(table): writes it to a file and has the library read it; returns the path. All are forgotten in the end."""

    def write_and_load(table: dict | str | bytes) -> str:
        content = json.dumps(table, indent=1) if isinstance(table, dict) else table
        path = tmp_path / "table.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        _core.load_table(str(path))
        return str(path)

    yield write_and_load
    _core.load_table("")


def plan(m: int, n: int = 64, k: int = 32, device: dict = CPU, residual: bool = False, **options: object) -> dict:
    inputs = {"A": torch.empty(m, k), "B": torch.empty(n, k), "residual": torch.empty(m, n) if residual else None}
    return _core.plan_gemm({"N": n, "K": k, "weight_format": "f32"}, inputs, device, **options)


def plan_quantised(weight_format: str, m: int = 4, block_size: int = 0, device: dict = CPU, **attributes: int) -> dict:
    """N = 64, K = 128, in the activations that the device's kernels take."""
    dtype = torch.float32 if device["backend"] == "cpu" else torch.float16
    stored = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}[weight_format]
    inputs = {
        "A": torch.empty(m, 128, dtype=dtype),
        "B": torch.empty(64, 64 if block_size else 128, dtype=stored),
        "scales": torch.empty((64, 128 // block_size) if block_size else 64, dtype=dtype),
    }
    attributes |= {"N": 64, "K": 128, "block_size": block_size}
    return _core.plan_gemm(attributes | {"weight_format": weight_format}, inputs, device)


def plan_attention(batch: int, context: int, new_tokens: int = 1) -> dict:
    cache = torch.empty(batch, 2, context, 64)
    inputs = {
        "query": torch.empty(batch, new_tokens, 8 * 64),
        "past_key": cache,
        "past_value": cache,
        "seqlens_k": torch.empty(batch, dtype=torch.int32),
        "total_sequence_length": context,
    }
    return _core.plan_attention({"num_heads": 4, "kv_num_heads": 2}, inputs, CPU)


# ---- what a table decides ----


@pytest.mark.parametrize(
    ("m", "name", "split"),
    [
        (1, FLAT, {"pieces": 3, "rows": 0, "stages": 0, "algorithm": 0}),
        (2, FLAT, {"pieces": 3, "rows": 0, "stages": 0, "algorithm": 0}),
        (3, FLAT, {"pieces": 1, "rows": 7, "stages": 2, "algorithm": 4}),
        (4, FLAT, {"pieces": 1, "rows": 7, "stages": 2, "algorithm": 4}),
        (5, LARGE, {"pieces": 1, "rows": 0, "stages": 0, "algorithm": 0}),
        (4096, LARGE, {"pieces": 1, "rows": 0, "stages": 0, "algorithm": 0}),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_ranges_of_m(load, m: int, name: str, split: dict, residual: bool) -> None:
    """The other epilogue of a shape is as good as its own."""
    path = load(TABLE)
    chosen = plan(m, residual=residual)
    assert (chosen["variant"], chosen["split"], chosen["reason"]) == (name, split, f"tuned: {path}")


def test_shapes_near_take_the_inflection_points_alone(load) -> None:
    before = [plan(m, n=72) for m in (1, 4, 5)]
    path = load(TABLE)
    near = [plan(m, n=72) for m in (1, 4, 5)]
    assert all(p["reason"] == f"tuned for a shape near this one: {path}" for p in near)
    assert [p["variant"] == LARGE for p in near] == [False, False, True]
    assert "gemv" not in near[0]["variant"] and near[0]["split"] == before[1]["split"]


def test_shapes_far_away_and_other_types_take_the_model(load) -> None:
    far = [plan(m, n=4096, k=4096) for m in (1, 8, 300)]
    load(TABLE)
    assert [plan(m, n=4096, k=4096) for m in (1, 8, 300)] == far
    inputs = {"A": torch.empty(4, 32), "B": torch.empty(64, 32, dtype=torch.float16)}
    other_type = _core.plan_gemm({"N": 64, "K": 32, "weight_format": "f16"}, inputs, CPU)
    assert other_type["reason"] == far[0]["reason"] == "model of costs"


QUANTISED = {"int8": 0, "fp8": 0, "int4": 32}  # with a size of blocks


def quantised(weight_format: str, **members: object) -> dict:
    """TABLE's product alone, its weights in another format."""
    entry = TABLE["gemm"][0] | {"k": 128, "weight_format": weight_format}
    return TABLE | {"gemm": [entry | members], "attention": []}


@pytest.mark.parametrize("weight_format", QUANTISED)
def test_quantised_weights(load, weight_format: str) -> None:
    path = load(quantised(weight_format))
    for other, block_size in QUANTISED.items():
        chosen = [plan_quantised(other, m, block_size) for m in (1, 5)]
        if other == weight_format:
            assert [(p["variant"], p["reason"]) for p in chosen] == [
                (FLAT, f"tuned: {path}"),
                (LARGE, f"tuned: {path}"),
            ]
            assert chosen[0]["split"]["pieces"] == 3
        else:
            assert all(p["reason"] == "model of costs" for p in chosen)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_an_entry_without_a_size_of_blocks_is_for_all(load, block_size: int) -> None:
    path = load(quantised("int4"))
    assert plan_quantised("int4", 1, block_size)["reason"] == f"tuned: {path}"


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ((32, 128), {16: 32, 32: 32, 64: 32, 128: 128}),
        ((128, 0), {16: 0, 32: 0, 64: 0, 128: 128}),
    ],
)
def test_the_entry_with_the_nearest_size_of_blocks_is_taken(load, sizes: tuple[int, ...], taken: dict) -> None:
    """Its own, else the one for all, else the nearest, the first of two. Splits tell the entries apart."""
    table = quantised("int4")
    (entry,) = table["gemm"]
    table["gemm"] = []
    for size in sizes:
        ranges = [entry["ranges"][0] | {"split": {"pieces": 2 + sizes.index(size)}}, *entry["ranges"][1:]]
        table["gemm"].append(entry | {"ranges": ranges} | ({"block_size": size} if size else {}))
    path = load(table)
    for block_size, size in taken.items():
        plan = plan_quantised("int4", 1, block_size)
        assert plan["reason"] == f"tuned: {path}"
        assert plan["split"]["pieces"] == 2 + sizes.index(size)


def test_a_size_of_blocks_is_of_int4_alone(load) -> None:
    table = quantised("int8")
    table["gemm"][0]["block_size"] = 32
    with pytest.raises(ValueError, match="block_size is of int4 weights alone"):
        load(table)


def test_an_entry_is_for_its_accuracy_level(load) -> None:
    """Level 4 runs other kernels; what is below it or of no int4 weights is all the same."""
    path = load(quantised("int4"))
    reasons = [plan_quantised("int4", 1, 32, accuracy_level=level)["reason"] for level in range(5)]
    assert reasons == [f"tuned: {path}"] * 4 + ["model of costs"]
    path = load(quantised("int4", accuracy_level=4))
    reasons = [plan_quantised("int4", 1, 32, accuracy_level=level)["reason"] for level in (0, 4)]
    assert reasons == ["model of costs", f"tuned: {path}"]
    path = load(quantised("int8"))
    assert plan_quantised("int8", 1, accuracy_level=4)["reason"] == f"tuned: {path}"


@pytest.mark.skipif(not HAS_CUDA, reason="a build without CUDA kernels plans for no GPU")
@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_a_gpu_knows_no_accuracy_level(load, accuracy_level: int) -> None:
    key = {name: H200[name] for name in ("backend", "name", "compute_capability", "multiprocessors")}
    ranges = [{"from": 1, "variant": "cuda_flat_mma", "split": {"pieces": 4, "rows": 32}}]
    path = load(quantised("int4", dtype="float16", ranges=ranges) | {"device": key})
    chosen = plan_quantised("int4", 1, 32, H200, accuracy_level=accuracy_level)
    assert (chosen["reason"], chosen["split"]["rows"]) == (f"tuned: {path}", 32)


def test_the_nearest_shape_decides(load) -> None:
    table = copy.deepcopy(TABLE)
    for n, m2 in ((100, 9), (110, 3)):
        table["gemm"].append(table["gemm"][0] | {"n": n, "m2": m2})
    load(table)
    assert [plan(8, n=n)["variant"] == LARGE for n in (70, 98, 109)] == [True, False, True]


def test_where_the_tuned_variant_does_not_take_the_problem(load) -> None:
    """No runtime lends a product here."""
    load(TABLE)
    assert "flat" in plan(5, device=CPU | {"host_gemm": False})["variant"]


def test_overrides_come_before_a_table(load, unforced: None) -> None:
    load(TABLE)
    assert plan(5, variant=FLAT) | {"reason": "forced"} == plan(5, variant=FLAT)
    assert plan(1, variant=FLAT)["split"]["pieces"] == 1, "a forced variant splits as it likes"
    assert plan(1, split={"pieces": 2})["split"]["pieces"] == 2
    _core.force_variant(GEMM, FLAT)
    assert (plan(5)["variant"], plan(5)["reason"]) == (FLAT, "forced")


@pytest.mark.parametrize(
    ("batch", "context", "pieces"),
    [(1, 1, 2), (1, 99, 2), (1, 100, 3), (3, 5000, 3), (4, 1, 4), (4, 5000, 4), (64, 7, 4)],
)
def test_splits_of_attention(load, batch: int, context: int, pieces: int) -> None:
    path = load(TABLE)
    chosen = plan_attention(batch, context)
    assert (chosen["split"]["pieces"], chosen["reason"]) == (pieces, f"tuned: {path}")


def test_a_table_of_attention_is_for_decoding(load) -> None:
    before = plan_attention(2, 100, new_tokens=100)
    load(TABLE)
    assert plan_attention(2, 100, new_tokens=100) == before


def test_a_table_reaches_calls(load) -> None:
    load(TABLE)
    y = torch.empty(2, 64)
    a, b = torch.randn(2, 32), torch.randn(64, 32)
    ran = _core.gemm({"N": 64, "K": 32, "weight_format": "f32"}, {"A": a, "B": b}, {"Y": y})
    assert (ran["variant"], ran["num_splits"]) == (FLAT, 3)
    torch.testing.assert_close(y, a @ b.T)


def test_the_last_table_wins_until_it_is_forgotten(load) -> None:
    load(TABLE)
    load(changed("gemm", 0, "ranges", 0, "variant", value=LARGE))
    assert plan(1)["variant"] == LARGE
    _core.load_table("")
    assert plan(1)["reason"] == "model of costs"


# ---- other devices ----


@pytest.mark.parametrize("change", [{"name": "another"}, {"threads": CPU["threads"] + 1}])
def test_a_table_of_another_processor_is_set_aside(load, capfd, change: dict) -> None:
    before = plan(5)
    path = load(changed("device", value=KEY | change))
    after = [plan(5) for _ in range(3)]
    assert all(p["variant"] == before["variant"] for p in after)
    assert after[0]["reason"].startswith(f"model of costs; {path} is for another device, ")
    said = capfd.readouterr().err
    assert said.count("table ignored") == 1
    assert f"{path} was measured on " in said and f"this is {CPU['name']}" in said


def test_a_table_of_a_gpu_says_nothing_on_the_cpu(load, capfd) -> None:
    load({"fdpp_table": 1, "library": "0.1.0", "device": OTHER_GPU})
    assert plan(1)["reason"] == "model of costs"
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not HAS_CUDA, reason="a build without CUDA kernels plans for no GPU")
def test_a_table_of_another_gpu_is_set_aside(load, capfd) -> None:
    path = load({"fdpp_table": 1, "library": "0.1.0", "device": OTHER_GPU})
    inputs = {"A": torch.empty(1, 64, dtype=torch.float16), "B": torch.empty(64, 64, dtype=torch.float16)}
    reason = _core.plan_gemm({"N": 64, "K": 64, "weight_format": "f16"}, inputs, H200)["reason"]
    assert reason == (
        f"model of costs; {path} is for another device, NVIDIA A100 (compute capability 8.0, 108 multiprocessors)"
    )
    assert "was measured on NVIDIA A100" in capfd.readouterr().err


def test_shipped_tables_are_part_of_the_library(repository: pathlib.Path) -> None:
    shipped = sorted((repository / "plugins/dispatch/tables").glob("*.json"))
    assert shipped
    content = pathlib.Path(fdpp_ort.library_path()).read_bytes()
    for path in shipped:
        assert path.read_bytes() in content
        _core.load_table(str(path))
    _core.load_table("")


@pytest.mark.skipif(not HAS_CUDA, reason="a build without CUDA kernels plans for no GPU")
def test_a_shipped_table_decides() -> None:
    inputs = {"A": torch.empty(1, 4096, dtype=torch.float16), "B": torch.empty(4096, 4096, dtype=torch.float16)}
    plan = _core.plan_gemm({"N": 4096, "K": 4096, "weight_format": "f16"}, inputs, H200)
    assert plan["reason"] == "tuned: the library's nvidia_h200.json"


# ---- the environment ----

SCRIPT = """
import numpy
from fdpp_ort import _core
inputs = {"A": numpy.ones((1, 32), "float32"), "B": numpy.ones((64, 32), "float32")}
device = _core.cpu_device() | {"host_gemm": True}
print(_core.plan_gemm({"N": 64, "K": 32, "weight_format": "f32"}, inputs, device)["reason"])
"""


def run_with_table(path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "FDPP_TABLE": str(path)}
    here = pathlib.Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=here, capture_output=True, text=True, check=True
    )


def test_table_by_environment(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    done = run_with_table(path)
    assert (done.stdout.strip(), done.stderr) == (f"tuned: {path}", "")
    path.write_text("{")
    done = run_with_table(path)
    assert done.stdout.strip() == "model of costs; FDPP_TABLE cannot be read"
    assert f"fdpp: table ignored: {path}:1:2: expected text, found the end" in done.stderr


# ---- what is refused ----


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("fdpp_table",), None, '"fdpp_table" is missing'),
        (("library",), "one", 'library is "one", expected a version as 1.2.3'),
        (("library",), "0.1", 'library is "0.1", expected a version'),
        (("other",), 1, '"other" is not known here'),
        (("device",), None, 'expected "device" before "gemm"'),
        (("device", "name"), 7, "expected text, found '7'"),
        (("device", "backend"), "tpu", 'backend is "tpu", expected one of cpu, cuda, hip'),
        (("device", "isa"), "sse", 'isa is "sse", expected one of scalar, avx2, avx512'),
        (("device", "threads"), None, "a cpu has isa and threads"),
        (("device", "multiprocessors"), 4, "a cpu has isa and threads, no compute_capability"),
        (("device",), KEY | {"backend": "cuda"}, "a cuda device has compute_capability and multiprocessors, no isa"),
        (("gemm",), {}, r"expected '\[', found '{'"),
        (("gemm", 0, "n"), 0, "expected a number from 1 to 1099511627776, found 0"),
        (("gemm", 0, "n"), -5, "expected a number from 1 to 1099511627776, found -5"),
        (("gemm", 0, "n"), 2.5, "expected a whole number"),
        (("gemm", 0, "n"), 10**30, "expected a number from 1"),
        (("gemm", 0, "n"), "64", "expected a whole number, found '\"'"),
        (("gemm", 0, "k"), None, '"k" is missing'),
        (("gemm", 0, "dtype"), "int3", 'dtype is "int3", expected one of float32, float16, bfloat16'),
        (("gemm", 0, "weight_format"), "q9", 'weight_format is "q9", expected one of f32, f16, bf16, int8, fp8, int4'),
        (("gemm", 0, "accuracy_level"), 5, "expected a number from 0 to 4, found 5"),
        (("gemm", 0, "epilogue"), "x", 'epilogue is "x", expected one of plain, added'),
        (("gemm", 0, "m1"), 6, "m1 is 6, expected at most m2 = 5"),
        (("gemm", 0, "ranges"), [], "ranges is empty"),
        (("gemm", 0, "ranges", 0, "from"), 2, "a range from M = 2, expected the first from 1"),
        (("gemm", 0, "ranges", 1, "from"), 1, "a range from M = 1, expected 2 or more"),
        (("gemm", 0, "ranges", 2, "from"), 2, "a range from M = 2, expected 4 or more"),
        (("gemm", 0, "ranges", 0, "variant"), "nothing", 'this build has no variant "nothing" on cpu, it has cpu_'),
        (("gemm", 0, "ranges", 0, "split"), {"pieces": 65}, "split's pieces is 65, expected 1 to 64"),
        (("gemm", 0, "ranges", 0, "split"), {"algorithm": 16}, "split's algorithm is 16, expected 0 to 15"),
        (("gemm", 0, "ranges", 0, "split"), {"cluster": 2}, '"cluster" is not known here'),
        (("attention", 0, "ranges", 0, "split"), {"cluster": 3}, "split's cluster is 3, expected 1, 2, 4 or 8"),
        (("attention", 0, "ranges", 0, "batch"), 2, "a range from batch 2 and context 1, expected batches from 1 on"),
        (("attention", 0, "ranges", 1, "context"), 1, "a range from batch 1 and context 1, expected batches"),
        (("attention", 0, "ranges", 2, "context"), 9, "a range from batch 4 and context 9, expected batches"),
        (("attention", 0, "ranges", 2, "batch"), 1, "a range from batch 1 and context 1, expected batches"),
    ],
)
def test_wrong_tables(load, path: tuple, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(changed(*path, value=value))
    assert "table.json:" in str(error.value)
    assert plan(1)["reason"] == "model of costs", "nothing of a bad table stays"


def test_entries_that_come_twice(load) -> None:
    with pytest.raises(ValueError, match="a second entry for the same product"):
        load(changed("gemm", value=TABLE["gemm"] * 2))
    with pytest.raises(ValueError, match="a second entry for the same attention"):
        load(changed("attention", value=TABLE["attention"] * 2))
    with pytest.raises(ValueError, match=r'table.json:1:\d+: "library" is given twice'):
        load('{"library": "0.1.0", "library": "0.1.0"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fdpp_table": 2}, "the table has format 2, this library reads up to 1"),
        ({"library": "9.0.0"}, "measured with fdpp_ort 9.0.0, newer than this library, 0.1.0"),
        ({"library": "0.1.1"}, "measured with fdpp_ort 0.1.1, newer than this library"),
        ({"library": "0.2.0"}, "measured with fdpp_ort 0.2.0, newer than this library"),
    ],
)
def test_newer_tables(load, change: dict, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        load(TABLE | change)
    load(TABLE | {"library": "0.0.9"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: expected '{', found the end"),
        ("[]", r"1:1: expected '{', found '\['"),
        ("null", "1:1: expected '{', found 'n'"),
        ("\x00\x01", "1:1: expected '{', found byte 0"),
        ("\ufeff{}", "1:1: expected '{', found byte 239"),
        ("{}", '"fdpp_table" is missing'),
        ('{"fdpp_table": 1,}', "expected text, found '}'"),
        ('{"fdpp_table" 1}', "expected ':', found '1'"),
        ('{"fdpp_table": 1.0}', "expected a whole number"),
        ('{"fdpp_table": 1e3}', "expected a whole number"),
        ('{"fdpp_table": true}', "expected a whole number, found 't'"),
        ('{"library": "0\n1"}', "text holds byte 10, expected printable ASCII"),
        ('{"library": "\\u0030"}', "after a"),
        ('{"library": "', "expected '\"', found the end"),
        ('{"library": "\\', "found the end"),
        ("[" * 100000, "expected '{'"),
        ('{"gemm": ' * 100000, 'expected "device" before "gemm"'),
    ],
)
def test_malformed_files(load, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(text)


def test_every_truncation_is_refused(load) -> None:
    text = json.dumps(TABLE)
    for length in range(len(text)):
        with pytest.raises(ValueError, match="table.json:1:"):
            load(text[:length])
    with pytest.raises(ValueError, match="expected the end, found '{'"):
        load(text + "{")
    load(text + "\n")


def test_bytes_changed_at_random(load) -> None:
    """Whatever a file holds, it is read or refused."""
    generator = torch.Generator().manual_seed(5)
    text = json.dumps(TABLE).encode()
    for _ in range(1500):
        at, byte = (int(torch.randint(0, most, (1,), generator=generator)) for most in (len(text), 256))
        try:
            load(text[:at] + bytes([byte]) + text[at + 1 :])
        except (ValueError, NotImplementedError) as error:
            assert "table.json" in str(error)


def test_files_that_are_none(load, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="missing.json: the table cannot be read: No such file"):
        _core.load_table(str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match="the table cannot be read"):
        _core.load_table(str(tmp_path))
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match="the table has 68157440 bytes, expected at most 67108864"):
        _core.load_table(str(large))
