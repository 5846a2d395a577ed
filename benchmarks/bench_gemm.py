"""FdppFlatGemm beside cuBLAS, cuBLASLt, torch.compile and ONNX Runtime's MatMul and MatMulNBits, on one GPU.

    bench_gemm.py --output FILE [--parts main,quantised,t2,t3] [--models ... | --shapes ...] [--rows ...]
        [--time-budget SECONDS]
    bench_gemm.py --output FILE --merge FILE...
    bench_gemm.py --dry-run | --self-test

All candidates of a case run in one process and in turns. A figure is the median of replays of a CUDA graph of calls
over distinct weights of random numbers, 256 MB of them or more (at most 256 sets), with the L2 filled with something
else before each replay. Each candidate's result is first held against float64: ours by the rule of the tests, a peer's
by its relative error. A candidate that fails, or a weight format that has no kernel, leaves its reason in the row. The
file is written after every case; --resume goes on where the last run stopped, leaving out what ended it.

Parts:
  main       float16, the products of seven models over M: what dispatch chooses (ours); the fastest variant and split
             of each kind (gemv, flat, large: the paper's static dataflows); cuBLAS through torch.matmul; the fastest
             of cuBLASLt's algorithms; torch.compile's GEMV at M = 1; ONNX Runtime's MatMul
  quantised  int4 in blocks of 32 and 128, int8 and fp8 against our float16 and MatMulNBits
  t2         the flat kind over N at M = 8: one stage, two, the most it has; padded to 8 rows and to 64
  t3         values of M and weights that fdpp-tune does not time: what the tables choose, and what the model of costs
             would, against the best of all variants and splits
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from common import results, runner
from common.options import comma_separated, numbers, shapes
from gemm import cases, report
from gemm.cases import Case

PACKAGES = ("torch", "triton", "onnxruntime-gpu", "numpy")
METHOD = (
    "us: medians over replays in turns. gemv, flat, large: the fastest variant and split of that kind, cublaslt: the "
    "fastest of all algorithms that gemm_splits offers for it, each found by a quick timing of the same case "
    "(screened: of how many ways in all; t3: the fastest of these and what was chosen are then timed in turns)"
)
SCREENED = 45  # ways of a case, about
CANDIDATES = 8
REPLAYS = 7
FINALISTS = 4  # of t3, besides what is chosen
CEILING_BYTES = 4 << 30
QUEUED = ("cublas", "compile", "ort", "ort_int4_32", "ort_int4_128")


@dataclass
class Bench(runner.Bench):
    """What the cases of one process share."""

    pools: object = None
    device: dict = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # peers that this machine has not, and why
    compile_seconds: float = 0  # left for torch.compile
    flat_variant: str | None = None
    without: Collection[str] = ()  # variants that are timed only where dispatch chooses them
    operands: object = None  # of the last case

    def ways(self, case: Case, m: int) -> list:
        from gemm import ours

        return ours.ways(case, m, self.device, self.without)

    def operands_of(self, case: Case):
        from gemm.operands import Operands

        last = self.operands
        if last is None or (last.case.n, last.case.k) != (case.n, case.k):
            self.operands = None  # before the next ones are made
            self.operands = Operands(case, self.pools)
        return self.operands


# ---- one case ----


def measure(bench: Bench, content: dict, case: Case) -> dict:
    """The row of one case."""
    import torch

    row = {
        **runner.new_row(case.key, content),
        "part": case.part,
        "n": case.n,
        "k": case.k,
        "m": case.m,
        "weights": cases.titles(case.n, case.k),
        "bytes": case.weight_bytes(),
        "sets": case.sets(),
    }
    if runner.TIMING not in row["failed"]:
        with torch.cuda.stream(bench.timer.stream), torch.no_grad():
            plan = PLANS[case.part](bench, row, case)
            ready = bench.prepare(row, plan, account="finalists" if case.part == "t3" else "")
        bench.measure(row, ready, REPLAYS)
    if case.part == "main" and "large" not in row["us"]:
        row["us"]["large"] = row["us"].get("cublaslt")  # the same way
    report.derive(row, content["runs"][-1]["read_ceiling"])
    return row


def main_plan(bench: Bench, row: dict, case: Case) -> dict[str, Callable]:
    from gemm import ours, torch_peers

    operands = bench.operands_of(case)
    row["reason"] = ours.planned(operands, case.m)[1]
    times = ours.screened(bench, row, operands, case.m, bench.ways(case, case.m))
    row["screened"] = len(times)
    plan: dict[str, Callable] = {"ours": partial(ours.candidate, operands, case.m)}
    for kind in report.STATIC:
        if way := next((way for way in times if way.kind == kind), None):
            plan[kind] = partial(ours.candidate, operands, case.m, way=way)
    if way := next((way for way in times if way.variant == "cublaslt"), None):
        plan["cublaslt"] = partial(ours.candidate, operands, case.m, way=way)
        if plan["large"].keywords["way"] == way:
            del plan["large"]
    plan["cublas"] = partial(torch_peers.cublas, operands, case.m)
    if case.m == 1 and bench.compile_seconds > 0:
        plan["compile"] = partial(compiled, bench, operands)
    if "ort" not in bench.absent:
        plan["ort"] = partial(ort_candidate, "matmul", operands, case.m, bench.timer.stream)
    return plan


def compiled(bench: Bench, operands):
    from gemm import torch_peers

    begun = time.monotonic()
    try:
        made = torch_peers.compiled(operands, 1)
        made.run(0)
        return made
    finally:
        bench.compile_seconds -= time.monotonic() - begun


def ort_candidate(name: str, *arguments):
    from gemm import ort_peer

    return getattr(ort_peer, name)(*arguments)


def quantised_plan(bench: Bench, row: dict, case: Case) -> dict[str, Callable]:
    from gemm import ours

    operands = bench.operands_of(case)
    plan: dict[str, Callable] = {name: partial(ours.candidate, operands, case.m, name) for name in cases.FORMATS}
    for name in report.INT4 if "ort" not in bench.absent else ():
        plan[f"ort_{name}"] = partial(ort_candidate, "matmul_nbits", operands, case.m, name, bench.timer.stream)
    return plan


def t2_plan(bench: Bench, row: dict, case: Case) -> dict[str, Callable]:
    from gemm import torch_peers

    operands = bench.operands_of(case)
    variant = bench.flat_variant or flat_variant(bench, case)

    def flat_ways(m: int) -> list:
        return [way for way in bench.ways(case, m) if way.variant == variant]

    offered = flat_ways(case.m)
    deepest = max((stages_of(way) for way in offered), default=0)
    row |= {"flat_variant": variant, "stages": sorted({stages_of(way) for way in offered}), "deepest": deepest}
    plan: dict[str, Callable] = {}
    if deepest:
        for name, stages in (("stages_1", 1), ("stages_2", 2), ("stages_most", deepest)):
            choose(bench, row, plan, name, operands, case.m, [with_stages(way, stages) for way in offered])
    else:
        row["failed"]["stages"] = f"{variant} offers no numbers of stages" if variant else "no variant of the flat kind"
    choose(bench, row, plan, "pad_8", operands, case.m, offered)
    choose(bench, row, plan, "pad_64", operands, cases.T2_PADDED, flat_ways(cases.T2_PADDED))
    plan["cublas"] = partial(torch_peers.cublas, operands, case.m)
    return plan


def choose(bench: Bench, row: dict, plan: dict, name: str, operands, m: int, wanted: list) -> None:
    """Plans the fastest of some ways, if one works."""
    from gemm import ours

    if times := ours.screened(bench, row, operands, m, list(dict.fromkeys(wanted))):
        plan[name] = partial(ours.candidate, operands, m, way=next(iter(times)))


def flat_variant(bench: Bench, case: Case) -> str | None:
    """The first of the flat kind whose stages can be chosen, or else the first, if there is one."""
    flat = [way for way in bench.ways(case, case.m) if way.kind == "flat"]
    return next((way.variant for way in [*filter(stages_of, flat), *flat]), None)


def stages_of(way) -> int:
    return dict(way.split).get("stages", 0)


def with_stages(way, stages: int):
    return replace(way, split=tuple(sorted((dict(way.split) | {"stages": stages}).items())))


def t3_plan(bench: Bench, row: dict, case: Case) -> dict[str, Callable]:
    from gemm import ours

    operands = bench.operands_of(case)
    chosen, row["reason"] = ours.planned(operands, case.m)
    model, _ = ours.planned(operands, case.m, tables=False)
    times = ours.screened(bench, row, operands, case.m, bench.ways(case, case.m))
    finalists = dict.fromkeys([*list(times)[:FINALISTS], chosen, model])
    row |= {"chosen": ours.text_of(chosen), "model": ours.text_of(model), "screened": len(times)}
    return {ours.text_of(way): partial(ours.candidate, operands, case.m, way=way) for way in finalists}


PLANS = {"main": main_plan, "quantised": quantised_plan, "t2": t2_plan, "t3": t3_plan}


# ---- all cases ----


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    output = Path(options.output)
    content = runner.begin(output, options.resume, method=METHOD)
    done = {row["key"] for row in content["rows"]}
    wanted = [case for case in chosen(options) if case.key not in done]

    import torch
    from gemm.operands import Pools
    from timing import Timer

    import fdpp_ort
    from fdpp_ort import _core

    if options.table:
        fdpp_ort.load_table(options.table)
    torch.manual_seed(0)
    bench = Bench(
        Timer(),
        runner.marker_of(output),
        QUEUED,
        pools=Pools(wanted, CEILING_BYTES),
        device=_core.gpu_device(0),
        absent=absent_peers(options),
        compile_seconds=options.compile_seconds,
        flat_variant=options.flat_variant,
        without=options.without,
    )
    head = runner.begin_run(content, bench, PACKAGES, bench.pools.weights("f16")[: CEILING_BYTES // 2], started)
    head["absent"] = bench.absent
    print(f"{len(wanted)} cases to run, {head['seconds_before_first_case']} s so far", flush=True)
    runner.run_cases(
        wanted,
        content,
        output,
        partial(measure, bench, content),
        estimate,
        lambda row: None if options.quiet else print(runner.row_text(row), flush=True),
        started + options.time_budget if options.time_budget else None,
    )
    finish(output, content)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


def absent_peers(options: argparse.Namespace) -> dict[str, str]:
    if options.no_ort:
        return {"ort": "left out"}
    try:
        from gemm import ort_peer

        why = ort_peer.absent()
    except ImportError as error:
        why = runner.reason(error)
    return {"ort": why} if why else {}


def finish(output: Path, content: dict) -> None:
    runner.finish(output, content, report.summary, report.lines)


def estimate(case: Case) -> float:
    screened = {"main": SCREENED, "quantised": 0, "t2": SCREENED, "t3": SCREENED}[case.part]
    return cases.estimated_seconds(case, screened, CANDIDATES, REPLAYS)


# ---- without a GPU ----


def chosen(options: argparse.Namespace) -> list[Case]:
    return cases.selected(options.parts, options.models, options.rows, options.shapes)


def dry_run(options: argparse.Namespace) -> int:
    """What a run would take, by part."""
    for part, group in results.by([vars(case) | {"of": case} for case in chosen(options)], lambda c: c["part"]).items():
        weights = {(case["n"], case["k"]) for case in group}
        seconds = sum(estimate(case["of"]) for case in group)
        print(f"{part:9} {len(group):4} cases, {len(weights):3} weights, about {seconds:5.1f} s on the GPU")
    return 0


def merge(options: argparse.Namespace) -> int:
    finish(Path(options.output), results.merged([results.read(Path(file)) for file in options.merge]))
    return 0


def self_test() -> int:
    from gemm import self_test

    self_test.run()
    print("self-test: ok")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", metavar="FILE", help="write the results there, as JSON")
    add("--parts", type=comma_separated(cases.PARTS), default=list(cases.PARTS), help="default: all")
    add("--models", type=comma_separated(cases.MODELS), default=list(cases.MODELS), help="of main and quantised")
    add("--shapes", type=shapes, metavar="NxK,...", help="of main and quantised, in place of the models'")
    add("--rows", type=numbers, default=list(cases.ROWS), metavar="M,...", help="of main (default: twelve up to 64)")
    add("--few-rows", action="store_const", dest="rows", const=list(cases.FEW_ROWS), help="M = 1, 4, 8, 16, 32 alone")
    add("--time-budget", type=float, metavar="SECONDS", help="start no case that would end later; name those left out")
    add("--compile-seconds", type=float, default=60, help="for torch.compile in all (default: 60; 0: leave it out)")
    add("--resume", action="store_true", help="go on with FILE, leaving out candidates that ended the process")
    add("--table", metavar="FILE", help="dispatch table to load; default: what FDPP_TABLE and the package have")
    add("--flat-variant", help="of t2; default: the first whose stages can be chosen")
    add("--without", type=lambda text: text.split(","), default=[], metavar="VARIANT,...", help="do not time these")
    add("--no-ort", action="store_true", help="leave out ONNX Runtime")
    add("--quiet", action="store_true", help="print the summary alone")
    add("--merge", nargs="+", metavar="FILE", help="make one file of these results")
    add("--dry-run", action="store_true", help="say what a run would take")
    add("--self-test", action="store_true", help="check what needs no GPU")
    options = parser.parse_args()
    if max(options.rows) > cases.MOST_ROWS:
        parser.error(f"--rows go up to {cases.MOST_ROWS}")
    if options.self_test:
        return self_test()
    if options.dry_run:
        return dry_run(options)
    if not options.output:
        parser.error("--output is missing")
    return merge(options) if options.merge else run(options)


if __name__ == "__main__":
    sys.exit(main())
