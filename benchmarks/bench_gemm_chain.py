"""The products of decoder layers one after the other, with the hint next_weight and without, on one GPU.

    bench_gemm_chain.py --output FILE [--models ...] [--rows ...] [--time-budget SECONDS]
    bench_gemm_chain.py --output FILE --merge FILE...
    bench_gemm_chain.py --dry-run

A case is a CUDA graph of layers, each of qkv, o, up and down with the model's shapes and with random weights of its
own, 256 MB of them or more in all; dispatch chooses the kernels. A figure is the median over replays, of one layer.
`off` has no hints, `8 MB` has as much of each product's next weight as a hint, if the weight has as much. What comes
between products is one of:
  nothing  each starts before the last one has ended
  norm     the products' own norm of A, at qkv and up: a kernel that starts early as well
  kernel   one of PyTorch's after each product, which neither starts early nor lets the next one: as ONNX Runtime's are
Results of `off` are first held against float64, the others' must then be the same to the bit. The file is written after
every case; --resume goes on where the last run stopped, leaving out what ended it.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from pathlib import Path

from common import results, runner
from common.cold import sets_for
from common.options import comma_separated, numbers
from gemm.cases import FORMATS, MODELS, ROLES
from gemm.cases import Case as Product

PACKAGES = ("torch", "triton", "numpy")
METHOD = "us: of one layer, medians over replays in turns. gain: the time without hints over the time with them"
OFF, HINTS = "off", {f"{size} MB": size << 20 for size in (2, 4, 8, 16, 24, 32)}
OF_A_LAYER = ROLES[:4]
NORMED = ("qkv", "up")
WEIGHTS, BETWEEN = ("f16", "int4_32"), ("nothing", "norm", "kernel")
DEFAULT_MODELS, DEFAULT_ROWS = ("Llama2-7B", "Llama3-8B", "Qwen2.5-0.5B"), (1, 8)
REPLAYS = 15
CEILING_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    model: str
    weights: str
    m: int
    between: str

    @property
    def key(self) -> str:
        return f"{self.model} {self.weights} M{self.m} {self.between}"

    @property
    def bytes(self) -> int:
        """Of a layer's weights."""
        return sum(FORMATS[self.weights].bytes(n, k) for n, k in MODELS[self.model][: len(OF_A_LAYER)])

    @property
    def layers(self) -> int:
        return sets_for(self.bytes)

    def seconds(self) -> float:
        """On the GPU, about."""
        return (len(HINTS) + 1) * (REPLAYS + 1) * (1e-3 + self.layers * self.bytes / 4e12)


def selected(models: list[str], rows: list[int]) -> list[Case]:
    return [Case(*case) for case in product(models, WEIGHTS, rows, BETWEEN)]


@dataclass
class Bench(runner.Bench):
    model: str = ""
    operands: list = field(default_factory=list)  # of that model: a layer's

    def operands_of(self, model: str) -> list:
        """Weights of each product in a pool of its own: a layer's are then in different places."""
        from gemm.operands import Operands, Pools

        if self.model != model:
            self.operands = []  # before the next ones are made
            products = [Product("quantised", n, k, 1) for n, k in MODELS[model][: len(OF_A_LAYER)]]
            self.operands = [Operands(product, Pools([product])) for product in products]
            for one in self.operands:  # what a norm leaves as it is
                one.a = (one.a.float() * one.a.float().square().mean(-1, keepdim=True).rsqrt()).half()
            self.model = model
        return self.operands


class Chain:
    """A candidate: a call is a layer. `bits`: what the first layer's products come to, filled by who comes first."""

    def __init__(self, case: Case, operands: list, hint_bytes: int, bits: list):
        import torch
        from gemm.ours import device_of

        from fdpp_ort import _core

        self.case, self.operands, self.sets, self.bits = case, operands, case.layers, bits
        self.calls = []  # attributes, inputs, Y
        for layer in range(self.sets):
            for role, one in zip(OF_A_LAYER, operands, strict=True):
                weights = one.weights(case.weights)
                inputs = {"A": one.a[: case.m], **weights.inputs(layer)}
                if case.between == "norm" and role in NORMED:
                    inputs["norm_weight"] = torch.ones_like(one.a[0])
                self.calls.append((weights.attributes, inputs, one.y[: case.m]))
        if hint_bytes:
            for (_, inputs, _), (_, following, _) in pairwise(self.calls):
                weight = following["B"].flatten()
                inputs["next_weight"] = weight[: hint_bytes // weight.element_size()]
        plans = [_core.plan_gemm(attributes, inputs, device_of(y)) for attributes, inputs, y in self.of_layer(0)]
        self.note = ", ".join(plan["variant"] for plan in plans)
        most = max(plan["workspace_bytes"] for plan in plans)
        self.workspace = torch.empty(max(most, 256), dtype=torch.uint8, device=operands[0].a.device)
        self.between = torch.zeros(case.m, MODELS[case.model][0][1], dtype=torch.float16, device=self.workspace.device)

    def of_layer(self, layer: int) -> list:
        count = len(OF_A_LAYER)
        return self.calls[layer * count : (layer + 1) * count]

    def run(self, layer: int) -> None:
        import torch

        from fdpp_ort import _core

        stream = torch.cuda.current_stream().cuda_stream
        for attributes, inputs, y in self.of_layer(layer):
            _core.gemm(attributes, inputs, {"Y": y}, workspace=self.workspace, stream=stream)
            if self.case.between == "kernel":
                self.between.add_(1)

    def check(self) -> float:
        """The largest relative error of a product of the first layer. Raises WrongResult for what is no rounding error,
        and for other bits than those of the first candidate."""
        import torch
        from common.accuracy import LARGEST_ERROR_PEER, WrongResult

        outputs = [y for _, _, y in self.of_layer(0)]
        for y in outputs:
            y.fill_(torch.nan)
        self.run(0)
        if not self.bits:
            self.bits += [y.clone() for y in outputs]
        for role, y, expected in zip(OF_A_LAYER, outputs, self.bits, strict=True):
            if not torch.equal(y, expected):
                raise WrongResult(f"other bits of {role} than without hints")
        # Norms round once more.
        expected = [one.expected(self.case.weights) for one in self.operands]
        return max(one.check(y, LARGEST_ERROR_PEER) for one, y in zip(expected, outputs, strict=True))


def measure(bench: Bench, content: dict, case: Case) -> dict:
    """The row of one case."""
    import torch

    row = {
        **runner.new_row(case.key, content),
        "model": case.model,
        "weights": case.weights,
        "m": case.m,
        "between": case.between,
        "bytes": case.bytes,
        "layers": case.layers,
    }
    if runner.TIMING not in row["failed"]:
        bits: list = []
        with torch.cuda.stream(bench.timer.stream), torch.no_grad():
            operands = bench.operands_of(case.model)
            plan = {name: partial(Chain, case, operands, size, bits) for name, size in {OFF: 0, **HINTS}.items()}
            ready = bench.prepare(row, plan)
        bench.measure(row, ready, REPLAYS)
    derive(row)
    return row


def derive(row: dict) -> None:
    row["gain"] = {name: results.rounded(results.quotient(row, OFF, name)) for name in HINTS}


def summary(content: dict) -> dict:
    for row in content["rows"]:
        derive(row)
    groups = {
        "all": lambda _: "",
        "weights and what is between": lambda row: f"{row['weights']}, {row['between']}",
        "M": lambda row: f"M = {row['m']}",
        "model": lambda row: row["model"],
    }
    return {
        "failed": {name: dict(why) for name, why in results.failures(content["rows"]).items()},
        "gain": {
            by: {
                which: {name: results.spread_of(row["gain"][name] for row in rows) for name in HINTS}
                for which, rows in results.by(content["rows"], of).items()
            }
            for by, of in groups.items()
        },
    }


def lines(content: dict) -> list[str]:
    out = results.run_lines(content)
    for by, groups in content["summary"]["gain"].items():
        for which, gains in groups.items():
            out.append(f"time without hints / with, {which or by}")
            out += [f"  {name}: {results.spread_text(spread)}" for name, spread in gains.items()]
    return out


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    content = runner.begin(options.output, options.resume, method=METHOD)
    done = {row["key"] for row in content["rows"]}
    wanted = [case for case in selected(options.models, options.rows) if case.key not in done]

    import torch
    from common.pool import Pool
    from timing import Timer

    torch.manual_seed(0)
    bench = Bench(Timer(), runner.marker_of(options.output), ())
    runner.begin_run(content, bench, PACKAGES, Pool(CEILING_BYTES).data, started)
    runner.run_cases(
        wanted,
        content,
        options.output,
        partial(measure, bench, content),
        Case.seconds,
        lambda row: print(runner.row_text(row), flush=True),
        started + options.time_budget if options.time_budget else None,
    )
    runner.finish(options.output, content, summary, lines)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


def merge(options: argparse.Namespace) -> int:
    runner.finish(options.output, results.merged([results.read(file) for file in options.merge]), summary, lines)
    return 0


def dry_run(options: argparse.Namespace) -> int:
    cases = selected(options.models, options.rows)
    for case in cases:
        print(f"{case.key:32} {case.layers:3} layers of {case.bytes / 1e6:.0f} MB")
    print(f"{len(cases)} cases, about {sum(case.seconds() for case in cases):.0f} s on the GPU")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help="write the results there, as JSON")
    add("--models", type=comma_separated(MODELS), default=list(DEFAULT_MODELS))
    add("--rows", type=numbers, default=list(DEFAULT_ROWS), metavar="M,...", help="default: 1,8")
    add("--time-budget", type=float, metavar="SECONDS", help="start no case that would end later; name those left out")
    add("--resume", action="store_true", help="go on with FILE, leaving out candidates that ended the process")
    add("--merge", nargs="+", type=Path, metavar="FILE", help="make one file of these results")
    add("--dry-run", action="store_true", help="say what a run would take")
    options = parser.parse_args()
    if options.dry_run:
        return dry_run(options)
    if not options.output:
        parser.error("--output is missing")
    return merge(options) if options.merge else run(options)


if __name__ == "__main__":
    sys.exit(main())
