"""Checks of what needs no GPU: sizes, layouts, references, the report; FdppFlatGemm's kernels on the CPU stand for the
GPU's in what the formats mean."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import cold, results
from common.accuracy import WrongResult
from common.expect import expect
from common.options import numbers

from fdpp_ort import _core
from gemm import cases, report
from gemm import operands as operands_module
from gemm.candidate import Candidate
from gemm.cases import FORMATS, Case
from gemm.operands import Expected, Operands, Pools

SMALL = Case("quantised", 48, 256, 3)


def run() -> None:
    for check in (check_cases, check_formats, check_columns, check_rule, check_report):
        check()


def small() -> Operands:
    torch.manual_seed(0)
    return Operands(SMALL, Pools([SMALL], device="cpu"))


def check_cases() -> None:
    everything = cases.selected(list(cases.PARTS), list(cases.MODELS), list(cases.ROWS))
    expect(len({case.key for case in everything}) == len(everything), "keys name cases")
    for case in everything:
        for name in case.formats:
            enough = case.sets(name) * case.weight_bytes(name) >= cold.COLD_BYTES
            expect(enough or case.sets(name) == cold.MOST_SETS, f"{case.key} {name}: {case.sets(name)} sets")
        expect(case.m <= cases.MOST_ROWS, f"{case.key}: more rows than there are")
    main = {(case.n, case.k) for case in everything if case.part == "main"}
    expect(set(cases.T3_TUNED) <= main and not set(cases.T3_OTHER) & main, "which shapes of t3 are tuned")
    expect(not set(cases.T3_ROWS) & set(cases.ROWS), "t3 has other M than the main part")
    expect(report.SQUARE in main and report.THIN in main, "the shapes with goals of their own are measured")
    expect(cases.titles(4096, 4096) == [f"{m} o" for m in ("Llama2-7B", "OPT-6.7B", "ChatGLM2-6B", "Llama3-8B")], "o")
    expect(numbers("1,64") == [1, 64], "numbers")
    expect(FORMATS["int4_32"].bytes(64, 96) == 64 * 48 + 2 * 64 * 3, "bytes of int4")


def check_formats() -> None:
    """What the operands hold is what FdppFlatGemm makes of them, in every format."""
    operands = small()
    for name in FORMATS:
        weights = operands.weights(name)
        inputs = {"A": operands.a[: SMALL.m].float()}
        inputs |= {key: x.float() if key == "scales" else x for key, x in weights.inputs(0).items()}
        y = torch.empty(SMALL.m, SMALL.n)
        _core.gemm(weights.attributes, inputs, {"Y": y})
        error = operands.expected(name).check(y, 1e-5)
        expect(error < 1e-5, f"{name}: relative error {error}")
    for name in report.INT4:
        weights = operands.weights(name)
        of_peer = weights.matmul_nbits(1)
        block = weights.format.block_size
        expect(of_peer["B"].shape == (SMALL.n, SMALL.k // block, block // 2), f"{name}: MatMulNBits' shape")
        expect(sorted(of_peer["B"][5].flatten().tolist()) != sorted(weights.inputs(1)["B"][5].tolist()), "two layouts")
    first, second = (operands.weights().inputs(index)["B"] for index in (0, 1))
    expect(second.data_ptr() - first.data_ptr() == first.nbytes, "sets do not overlap")


def check_columns() -> None:
    operands = small()
    y = operands.a.double() @ operands.weights().as_columns(0).double()
    expect(operands.expected_of_columns.check(y.half(), None) < 1e-3, "the weight read as [K, N]")


def check_rule() -> None:
    operands = small()
    expected = operands.expected()
    exact = expected.exact[: SMALL.m]
    for result, limit in ((exact.half(), None), ((exact * 1.01).half(), 5e-2)):
        Candidate(lambda _, y=result: y, 1, expected, limit=limit).check()
    spoiled = exact.half()
    spoiled[1, 7] += 0.01 * exact.abs().max().item()
    missing = torch.full_like(spoiled, torch.nan)
    for result, limit in ((spoiled, None), (missing, None), (missing, 1.0), (exact.half() * 2, 5e-3)):
        try:
            Candidate(lambda _, y=result: y, 1, expected, limit=limit).check()
        except WrongResult:
            continue
        expect(False, "a wrong result passes")
    operands_module.REFERENCE_ELEMENTS, before = 20 * SMALL.k, operands_module.REFERENCE_ELEMENTS
    in_pieces = Expected(operands.a, SMALL.n, operands.weights().values)
    operands_module.REFERENCE_ELEMENTS = before
    expect((in_pieces.exact - expected.exact).abs().max().item() < 1e-9, "a reference made piece by piece")


def made_up_row(case: Case, **fields) -> dict:
    own = {"key": case.key, "part": case.part, "n": case.n, "k": case.k, "m": case.m, "bytes": case.weight_bytes()}
    return {**own, "failed": {}, "reason": "model of costs", "run": 0, **fields}


def check_report() -> None:
    head = {"read_ceiling": 4e12, "empty_node_us": 2.0, "preparation_seconds": {"ours": 1.0}, "absent": {"ort": "none"}}
    square, large = Case("main", 4096, 4096, 8), Case("main", 32000, 4096, 16)
    quantised, other = Case("quantised", 12288, 4096, 1), Case("t3", 3072, 3072, 5)
    rows = [
        made_up_row(square, us={"ours": 10.0, "gemv": None, "flat": 11.0, "cublas": 15.0, "cublaslt": 14.0}),
        made_up_row(large, us={"ours": 2 * large.weight_bytes() / 4e6, "cublas": 100.0}, failed={"cublaslt": "no"}),
        made_up_row(quantised, us={"f16": 30.0, "int4_32": 8.0, "ort_int4_32": 7.0, "int8": 15.0, "fp8": None}),
        made_up_row(Case("t2", 1024, 4096, 8), us={"stages_1": 8.0, "stages_2": 4.0, "pad_8": 4.0, "pad_64": 5.0}),
        made_up_row(other, us={"a": 10.0, "b": 11.0}, chosen="b", model="a"),
    ]
    content = {"runs": [head], "not_run": [], "rows": rows}
    found = content["summary"] = report.summary(content)
    main = found["main"]
    expect(main["square"]["geometric_mean"] == 1.4, "cuBLASLt is the best peer")
    expect(main["read_below_goal"] == [[large.key, 0.5]], "bandwidth")
    expect([key for key, _, _ in main["below_minimum"]] == [large.key], "the slow case is named")
    expect(found["quantised"]["int4_against_ort"]["M = 1"]["below_1"] == [[quantised.key, "int4_32", 0.875]], "int4")
    expect(found["quantised"]["large_against_f16"]["1"]["int8"]["minimum"] == 2.0, "8 bits against 16")
    expect(found["t2"]["one stage / two"]["geometric_mean"] == 2.0, "stages")
    expect(found["t3"]["tables"]["worst"] == 0.1 and found["t3"]["model"]["worst"] == 0.0, "regret")
    expect(len(report.lines(content)) > 20, "a summary in words")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.json"
        results.write(file, content)
        expect(results.read(file)["summary"] == found, "written and read")
