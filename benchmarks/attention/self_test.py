"""Checks of what needs no GPU: sizes, layouts, references, the report; and FdppAttention's candidate on the CPU."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from common import cold, results
from common.accuracy import WrongResult, relative_error
from common.expect import expect
from common.pool import Pool

from attention import cases, ours, report, torch_peers
from attention.candidate import Candidate
from attention.cases import PAGE, Case
from attention.operands import Operands, Sample, reference, rotary_tables, rotated

SMALL = Case("decode", 6, 3, 64, 2, 2 * PAGE)


def run() -> None:
    for check in (check_cases, check_parts, check_reference, check_layouts, check_ours, check_wrong, check_report):
        check()


def small(case: Case, dtype: torch.dtype = torch.float16) -> Operands:
    """Few sets: a pool of just that size would hold hundreds of so small a case."""
    torch.manual_seed(0)
    return Operands(case, Pool(case.pool_bytes(dtype.itemsize), dtype, "cpu"))


def check_cases() -> None:
    grid = cases.decode_grid()
    expect(len(grid) == len({case.key for case in grid}) == 7 * 3 * 5 * 6, "the grid is the full product")
    expect(set(cases.representative()) <= set(grid), "representative cases are of the grid")
    everything = cases.selected(list(cases.SECTIONS), False)
    expect(len({case.key for case in everything}) == len(everything), "keys name cases")
    for case in everything:
        enough = case.sets() * case.kv_bytes() >= cold.COLD_BYTES
        expect(enough or case.sets() == cold.MOST_SETS, f"{case.key}: {case.sets()} sets")
        expect(case.context % PAGE == 0, f"{case.key}: whole pages")
    prompt = Case("prefill", 2, 1, 64, 1, 3, queries=3)
    expect(prompt.flops() == 4 * 2 * (1 + 2 + 3) * 64, "a prompt's operations are the causal half")
    expect(cases.in_large_buffer(SMALL, True).kv_bytes() == SMALL.kv_bytes(), "the buffer's end is not read")


def check_parts() -> None:
    everything = cases.selected(["decode"], False)
    parts = [cases.part(everything, index, 3) for index in (1, 2, 3)]
    expect(sorted(case.key for part in parts for case in part) == sorted(case.key for case in everything), "parts")
    expect(everything[: len(cases.representative())] == cases.representative(), "representative cases come first")


def check_reference() -> None:
    case = replace(SMALL, queries=5)
    operands = small(case)
    sample = Sample.of(case, torch.device("cpu"))
    key, value = (cache.double() for cache in operands.caches[0])
    mask = torch.ones(5, case.context, dtype=torch.bool).tril(case.context - 5)
    query = operands.query.double().transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    error = relative_error(reference(operands, sample, "dense", operands.query), sample.take(expected.transpose(1, 2)))
    expect(error < 1e-12, f"reference against torch: {error}")
    cos, sin = rotary_tables(case.context, case.head_size, torch.device("cpu"))
    turned = rotated(operands.query, cos, sin, 0)
    expect(relative_error(turned[:, 0], operands.query[:, 0]) < 1e-12, "position 0 is not rotated")
    expect(abs(turned.norm() / operands.query.double().norm() - 1).item() < 1e-3, "rotation keeps lengths")


def check_layouts() -> None:
    operands = small(SMALL)
    keys, _ = operands.pages(1)
    table = operands.page_table()
    row, head, token = 1, 2, PAGE + 3
    page = keys[table[row, token // PAGE], head, token % PAGE]
    flat = operands.caches[1][0].reshape(-1)
    index = (((row * 2 + 1) * 3 + head) * PAGE + 3) * 64
    expect(torch.equal(page, flat[index : index + 64]), "pages lie row by row")
    first, second = operands.caches[0][0], operands.caches[1][0]
    expect(second.data_ptr() - first.data_ptr() == first.nbytes, "sets do not overlap")
    roomy = Operands(replace(SMALL, capacity=8 * SMALL.context), Pool(1 << 26, device="cpu"))
    tokens = [cache[:, :, : SMALL.context] for pair in roomy.caches for cache in pair]
    for number, part in enumerate(tokens):
        part.fill_(number)
    expect(all((part == number).all() for number, part in enumerate(tokens)), "sets in large buffers do not meet")


def check_ours() -> None:
    """The CPU kernels through the candidate, and torch's own attention over the cache that they appended to."""
    for mode in ours.MODES:
        candidate = ours.candidate(small(SMALL), mode)
        expect(candidate.check() < 2e-3, mode)
        expect(torch_peers.sdpa(candidate.operands, "math").check() < 2e-3, "torch after the append")
    for phi, outside in ((0.0, 0), (100.0, SMALL.batch * SMALL.q_heads)):
        candidate = ours.candidate(small(SMALL), "unified", phi=phi)
        candidate.check()
        expect(candidate.counter.read() == outside, f"rows outside with phi {phi}: {candidate.counter.read()}")
    expect(ours.candidate(small(SMALL), rotary=True).check() < 2e-3, "rotary")
    expect(ours.candidate(small(replace(SMALL, queries=4))).check() < 2e-3, "4 new tokens")
    prompt = small(Case("prefill", 6, 3, 64, 1, 2 * PAGE, queries=2 * PAGE))
    expect(ours.candidate(prompt).check() < 2e-3, "prompt")
    prompt.store_tokens()
    for tokens_first in (False, True):
        expect(torch_peers.sdpa(prompt, "math", tokens_first=tokens_first).check() < 2e-3, "torch's prompt")
    roomy = Operands(replace(SMALL, capacity=3 * PAGE, bound=3 * PAGE), Pool(1 << 26, device="cpu"))
    expect(ours.candidate(roomy).check() < 2e-3, "larger buffer")


def check_wrong() -> None:
    operands = small(SMALL)
    zeros = torch.zeros(2, 1, 6, 64, dtype=torch.float16)
    for result in (zeros, zeros + math.nan):
        try:
            Candidate(operands, lambda _, result=result: result).check()
        except WrongResult:
            continue
        expect(False, "a wrong result passes")
    try:
        Candidate(operands, torch_peers.sdpa(operands, "math").run, new_key=operands.key).check()
    except WrongResult as error:
        expect("appended keys" in str(error), str(error))
    else:
        expect(False, "a missing append passes")


def made_up_row(case: Case, **us: float | None) -> dict:
    failed = {name: "made up" for name, value in us.items() if value is None}
    return {"key": case.key, "section": case.section, "case": case.as_dict(), "bytes": case.kv_bytes(),
            "flops": case.flops(), "us": us, "failed": failed, "rows_outside": {}, "run": 0}  # fmt: skip


def check_report() -> None:
    head = {"read_ceiling": 4e12, "empty_node_us": 2.0, "preparation_seconds": {"lazy": 1.0}}
    large = Case("decode", 32, 32, 128, 8, 8192)
    first = {"mode": "lazy", "runs": [head], "not_run": [large.key], "rows": [
        made_up_row(SMALL, lazy=10.0, unified=8.0, cudnn=9.0, fa2=20.0, xqa=None),
    ]}  # fmt: skip
    second = {"mode": "lazy", "runs": [head], "not_run": [], "rows": [
        made_up_row(large, lazy=large.kv_bytes() / 4e6 / 0.5, unified=1e3, cudnn=None, fa2=2 * large.kv_bytes() / 4e6),
    ]}  # fmt: skip
    content = results.merged([first, second])
    expect([row["run"] for row in content["rows"]] == [0, 1] and not content["not_run"], "merged runs")
    found = report.summary(content)
    decode = found["decode"]
    expect(decode["below_minimum"] == [[SMALL.key, 0.9, "cudnn"]], "the slow case is named")
    expect(decode["against_best_peer"]["geometric_mean"] == round(math.sqrt(0.9), 4), "geometric mean")
    expect(decode["large_below_goal"] == [[large.key, 0.5]], "bandwidth")
    expect(found["failed"] == {"cudnn": {"made up": 1}, "xqa": {"made up": 1}}, "failures are counted")
    content["summary"] = report.summary(content)
    expect(len(report.lines(content)) > 5, "a summary in words")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.json"
        results.write(file, content)
        expect(results.read(file)["summary"]["decode"] == decode, "written and read")
