"""FdppAttention beside FlashInfer, XQA, torch (FlashAttention-2, cuDNN) and ONNX Runtime, on one GPU.

    bench_attention.py --output FILE [--quick] [--sections decode,rotary,...] [--part I/N] [--time-budget SECONDS]
    bench_attention.py --output FILE --merge FILE...
    bench_attention.py --dry-run | --self-test | --build-flashinfer FOLDER

All candidates of a case run in one process and in turns. A figure is the median of replays of a CUDA graph of calls
over distinct caches of random numbers, 256 MB of K and V or more (one set where it is larger; at most 256 sets), with
the L2 filled with something else before each replay. Each candidate's result is first held against float64 over what it
read. A candidate that fails leaves its reason in the row. The file is written after every case; --resume goes on where
the last run stopped, leaving out what ended it.

Sections: decode (the grid, one new token: ours appends it to the cache, without rotary embedding; of the peers ONNX
Runtime alone appends), rotary (rotary embedding and append against ONNX Runtime's node), cache8 (8-bit caches against
float16), queries (1 to 16 new tokens by softmax mode), prefill (causal prompts), capacity (1024 tokens in a larger
buffer).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from attention import cases, report
from attention.cases import Case
from common import results, runner
from common.options import comma_separated

PACKAGES = ("torch", "triton", "flashinfer-python", "onnxruntime-gpu", "numpy")
MOST_CANDIDATES = 10
OTHERS = ("f8e4m3", "f8e4m3_channel", "i8", "i8_channel", "large_buffer", "large_buffer_loose", "unified_missed")
MISSING_PHI = 100.0  # which no score comes near: every row leaves the interval
REPLAYS = 7
REPLAYS_LONG = 5  # where a call takes longer than LONG_US
LONG_US = 5000
CEILING_BYTES = 8 << 30


@dataclass
class Bench(runner.Bench):
    """What the cases of one process share."""

    pool: object = None
    mode: str = "lazy"
    variant: str | None = None
    only: set[str] = field(default_factory=set)
    with_ort: set[str] = field(default_factory=set)  # keys of decode cases in which ONNX Runtime runs too
    byte_pools: dict = field(default_factory=dict)

    def byte_pool(self, name: str, size_bytes: int):
        from attention.ours import CACHE_TYPES
        from common.pool import Pool

        if name not in self.byte_pools or self.byte_pools[name].size_bytes < size_bytes:
            self.byte_pools.pop(name, None)
            self.byte_pools[name] = Pool(size_bytes, CACHE_TYPES[name])
        return self.byte_pools[name]


def plan_of(bench: Bench, case: Case) -> dict[str, Callable]:
    """What to prepare for a case, by name, ours first. Operands are made here, peers imported where they are called."""
    from attention import ours
    from attention.operands import Operands

    operands = Operands(case, bench.pool)
    plan: dict[str, Callable] = {}
    modes = ours.MODES if case.section in ("decode", "queries", "prefill") else (bench.mode,)
    for mode in modes:
        plan[mode] = partial(ours.candidate, operands, mode, rotary=case.section == "rotary", variant=bench.variant)
    if case.section == "decode":
        plan |= decode_peers(operands)
        if case.key in bench.with_ort:
            plan["ort"] = partial(ort_candidate, operands, "ort", bench.timer.stream, rotary=False)
    elif case.section == "queries":
        plan["unified_missed"] = partial(ours.candidate, operands, "unified", phi=MISSING_PHI, variant=bench.variant)
    elif case.section == "rotary":
        for kernel in ("ort", "ort_xqa", "ort_flash", "ort_cudnn"):
            plan[kernel] = partial(ort_candidate, operands, kernel, bench.timer.stream, rotary=True)
    elif case.section == "cache8":
        for name in ours.CACHE_TYPES:
            pool = bench.byte_pool(name, case.pool_bytes(1))
            of_bytes = Operands(case, pool)
            plan[name] = partial(ours.candidate, of_bytes, bench.mode, variant=bench.variant)
            plan[f"{name}_channel"] = partial(
                ours.candidate, of_bytes, bench.mode, per_channel=True, variant=bench.variant
            )
    elif case.section == "prefill":
        operands.store_tokens()
        for backend in ("cudnn", "fa2"):
            plan[backend] = partial(torch_candidate, operands, backend)
            plan[f"{backend}_tokens"] = partial(torch_candidate, operands, backend, tokens_first=True)
    elif case.section == "capacity":
        for name, loose in (("large_buffer", False), ("large_buffer_loose", True)):
            large = Operands(cases.in_large_buffer(case, loose), bench.pool)
            plan[name] = partial(ours.candidate, large, bench.mode, variant=bench.variant)
    return {name: make for name, make in plan.items() if not bench.only or name in bench.only}


def decode_peers(operands) -> dict[str, Callable]:
    peers = {
        "flashinfer": partial(flashinfer_candidate, operands, tensor_cores=False),
        "flashinfer_tc": partial(flashinfer_candidate, operands, tensor_cores=True),
        "xqa": partial(xqa_candidate, operands),
        "fa2": partial(torch_candidate, operands, "fa2"),
        "cudnn": partial(torch_candidate, operands, "cudnn"),
    }
    if operands.case.group > 1:
        peers["cudnn_packed"] = partial(packed_candidate, operands)
    return peers


def flashinfer_candidate(operands, **options):
    from attention import flashinfer_peers

    return flashinfer_peers.flashinfer(operands, **options)


def xqa_candidate(operands):
    from attention import flashinfer_peers

    return flashinfer_peers.xqa(operands)


def torch_candidate(operands, backend, **options):
    from attention import torch_peers

    return torch_peers.sdpa(operands, backend, **options)


def packed_candidate(operands):
    from attention import torch_peers

    return torch_peers.packed_cudnn(operands)


def ort_candidate(operands, kernel, stream, **options):
    from attention import ort_peer

    return ort_peer.candidate(operands, kernel, stream, **options)


# ---- one case ----


def measure(bench: Bench, content: dict, case: Case) -> dict:
    """The row of one case."""
    import torch

    row = {
        **runner.new_row(case.key, content),
        "section": case.section,
        "case": case.as_dict(),
        "bytes": case.kv_bytes(),
        "flops": case.flops(),
        "sets": case.sets(),
        "rows_outside": {},
    }
    ready = {}
    if runner.TIMING not in row["failed"]:
        with torch.cuda.stream(bench.timer.stream):
            try:
                ready = bench.prepare(row, plan_of(bench, case))
            except MemoryError as error:
                row["failed"]["all"] = str(error)
    counters = {name: one.candidate.counter for name, one in ready.items() if one.candidate.counter is not None}
    row["rows_outside"] = {name: counter.read() for name, counter in counters.items()}
    estimate = case.kv_bytes() / 4e6 + case.flops() / 4e8
    bench.measure(row, ready, REPLAYS_LONG if estimate > LONG_US else REPLAYS)
    del ready, counters
    torch.cuda.empty_cache()
    report.derive(row, content["runs"][-1]["read_ceiling"], bench.mode)
    return row


# ---- all cases ----


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    output = Path(options.output)
    content = runner.begin(output, options.resume, mode=options.mode)
    done = {row["key"] for file in options.done for row in results.read(Path(file))["rows"]}
    done |= {row["key"] for row in content["rows"]}
    wanted = [case for case in chosen(options) if case.key not in done]

    import torch
    from common.pool import Pool
    from timing import Timer

    torch.manual_seed(0)
    prepare_flashinfer(options, wanted)
    limit = int(options.pool_gb * 1e9)
    largest = max((pool_needed(case) for case in wanted if pool_needed(case) <= limit), default=0)
    bench = Bench(
        Timer(),
        runner.marker_of(output),
        report.PEERS,
        pool=Pool(max(largest, CEILING_BYTES)),
        mode=options.mode,
        variant=options.variant,
        only=options.only,
        with_ort={case.key for case in cases.representative()},
    )
    head = runner.begin_run(content, bench, PACKAGES, bench.pool.data[: CEILING_BYTES // 2], started)
    print(f"{len(wanted)} cases to run, {head['seconds_before_first_case']} s so far", flush=True)
    runner.run_cases(
        wanted,
        content,
        output,
        partial(measure, bench, content),
        lambda case: cases.estimated_seconds(case, MOST_CANDIDATES, REPLAYS),
        lambda row: None if options.quiet else print(runner.row_text(row), flush=True),
        started + options.time_budget if options.time_budget else None,
    )
    finish(output, content)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


def finish(output: Path, content: dict) -> None:
    runner.finish(output, content, report.summary, report.lines)


def pool_needed(case: Case) -> int:
    return (cases.in_large_buffer(case, False) if case.section == "capacity" else case).pool_bytes()


def prepare_flashinfer(options: argparse.Namespace, wanted: list[Case]) -> None:
    """Compiles FlashInfer's kernels side by side. Without FlashInfer, or where that fails, its rows will say so."""
    decode = [case for case in wanted if case.section == "decode"]
    if not decode or (options.only and not options.only & {"flashinfer", "flashinfer_tc", "xqa"}):
        return
    begun = time.monotonic()
    try:
        from attention import flashinfer_peers

        if options.flashinfer_modules:
            flashinfer_peers.use(Path(options.flashinfer_modules))
        flashinfer_peers.build(decode)
    except Exception as error:
        print(f"FlashInfer's kernels: {runner.reason(error)}", flush=True)
    print(f"FlashInfer's kernels: {time.monotonic() - begun:.0f} s", flush=True)


# ---- without a GPU ----


def chosen(options: argparse.Namespace) -> list[Case]:
    return cases.part(cases.selected(options.sections, options.quick), *options.part)


def dry_run(options: argparse.Namespace) -> int:
    """What a run would take, by section and context."""
    wanted = chosen(options)
    limit = options.pool_gb * 1e9
    fitting = [case for case in wanted if pool_needed(case) <= limit]
    for section, group in results.by(fitting, lambda case: case.section).items():
        for context, same in results.by(group, lambda case: case.context).items():
            seconds = sum(cases.estimated_seconds(case, MOST_CANDIDATES, REPLAYS) for case in same)
            print(
                f"{section:9} context {context:6}: {len(same):4} cases, {sum(case.sets() for case in same):6} sets, "
                f"caches up to {max(map(pool_needed, same)) / 1e9:6.2f} GB, about {seconds:5.1f} s on the GPU"
            )
    total = sum(cases.estimated_seconds(case, MOST_CANDIDATES, REPLAYS) for case in fitting)
    print(
        f"{len(fitting)} cases, about {total:.0f} s on the GPU besides preparation; do not fit in {limit / 1e9:.0f} GB:"
    )
    for case in wanted:
        if case not in fitting:
            print(f"  {case.key}: {pool_needed(case) / 1e9:.0f} GB")
    return 0


def merge(options: argparse.Namespace) -> int:
    finish(Path(options.output), results.merged([results.read(Path(file)) for file in options.merge]))
    return 0


def self_test() -> int:
    from attention import self_test

    self_test.run()
    print("self-test: ok")
    return 0


def build_flashinfer(options: argparse.Namespace) -> int:
    from attention import flashinfer_peers

    flashinfer_peers.build(
        [case for case in chosen(options) if case.section == "decode"], Path(options.build_flashinfer)
    )
    return 0


def part_of(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N with I in 1..N")
    return int(index), int(count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", metavar="FILE", help="write the results there, as JSON")
    add("--sections", type=comma_separated(cases.SECTIONS), default=list(cases.SECTIONS), help="default: all")
    add("--quick", action="store_true", help="representative cases alone")
    add("--part", type=part_of, default=(1, 1), metavar="I/N", help="every N-th case from the I-th on")
    add("--time-budget", type=float, metavar="SECONDS", help="start no case that would end later; name those left out")
    add("--resume", action="store_true", help="go on with FILE, leaving out candidates that ended the process")
    add("--done", nargs="+", default=[], metavar="FILE", help="leave out the cases of these results")
    add("--only", type=comma_separated(report.OURS + report.PEERS + OTHERS), default=[], help="candidates")
    add("--mode", choices=report.OURS, default="lazy", help="ours in comparisons (default: lazy)")
    add("--variant", help="kernel variant of ours; default: what the dispatch table chooses")
    add("--pool-gb", type=float, default=100, help="memory for caches in GB (default: 100)")
    add("--flashinfer-modules", metavar="FOLDER", help="compiled modules, from --build-flashinfer")
    add("--quiet", action="store_true", help="print the summary alone")
    add("--merge", nargs="+", metavar="FILE", help="make one file of these results")
    add("--dry-run", action="store_true", help="say what a run would take")
    add("--self-test", action="store_true", help="check what needs no GPU")
    add("--build-flashinfer", metavar="FOLDER", help="compile FlashInfer's kernels into FOLDER; needs nvcc, no GPU")
    options = parser.parse_args()
    options.only = set(options.only)
    if options.self_test:
        return self_test()
    if options.dry_run:
        return dry_run(options)
    if options.build_flashinfer:
        return build_flashinfer(options)
    if not options.output:
        parser.error("--output is missing")
    return merge(options) if options.merge else run(options)


if __name__ == "__main__":
    sys.exit(main())
