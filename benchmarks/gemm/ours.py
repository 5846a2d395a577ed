"""FdppFlatGemm as a candidate: what dispatch chooses, or a variant and split by name; and which of those are fast."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from common import runner

from fdpp_ort import _core
from fdpp_ort.tuning.candidates import candidates as tuned_ways
from fdpp_ort.tuning.measurements import Candidate as Way  # a variant with a split
from fdpp_ort.tuning.products import Product
from gemm.candidate import Candidate
from gemm.cases import Case
from gemm.operands import Operands

SCREENED_CALLS = 16
SCREENED_REPLAYS = 3


def device_of(tensor: torch.Tensor) -> dict:
    return _core.gpu_device(tensor.device.index or 0)


def kind_of(variant: str) -> str:
    return next(v["kind"] for v in _core.variants() if (v["op"], v["name"]) == ("FdppFlatGemm", variant))


def text_of(way: Way) -> str:
    return " ".join([way.variant, *(f"{name}={value}" for name, value in way.split)])


def planned(operands: Operands, m: int, *, tables: bool = True) -> tuple[Way, str]:
    """What dispatch chooses for float16 weights, and why. `tables` False: by the model of costs, which asks for what a
    device can do, while a table holds for its name too."""
    device = device_of(operands.a)
    if not tables:
        device |= {"name": device["name"] + ", without its tables"}
    weights = operands.weights()
    plan = _core.plan_gemm(weights.attributes, {"A": operands.a[:m], **weights.inputs(0)}, device)
    return Way.of(kind_of(plan["variant"]), plan["variant"], plan["split"]), plan["reason"]


def candidate(
    operands: Operands, m: int, name: str = "f16", way: Way | None = None, most_sets: int | None = None
) -> Candidate:
    """`name`: of the weights' format. `way` None: what dispatch chooses."""
    weights = operands.weights(name)
    a, y = operands.a[:m], operands.y[:m]
    options = {} if way is None else {"variant": way.variant, "split": dict(way.split)}
    sets = min(weights.sets, most_sets or weights.sets)
    inputs = [{"A": a, **weights.inputs(index)} for index in range(sets)]
    plan = _core.plan_gemm(weights.attributes, inputs[0], device_of(a), **options)
    workspace = torch.empty(max(plan["workspace_bytes"], 256), dtype=torch.uint8, device=a.device)

    def run(index: int) -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        _core.gemm(weights.attributes, inputs[index], {"Y": y}, workspace=workspace, stream=stream, **options)
        return y

    note = text_of(Way.of(kind_of(plan["variant"]), plan["variant"], plan["split"]))
    if way is None:
        note += f" ({plan['reason']})"
    return Candidate(run, sets, operands.expected(name), y, note=note)


def ways(case: Case, m: int, device: dict, without: Collection[str] = ()) -> list[Way]:
    """Every variant, but for those `without`, with every split that it thinks worth timing."""
    found = tuned_ways(Product(case.n, case.k, "float16", "f16"), m, device)
    return [way for way in found if way.variant not in without]


def screened(bench: runner.Bench, row: dict, operands: Operands, m: int, wanted: list[Way]) -> dict[Way, float]:
    """Roughly how long each takes, the fastest first: medians over few calls and replays. What fails is left out, and
    the row says why."""
    trial = {"key": row["key"], "us": {}, "spread": {}, "error": {}, "note": {}, "failed": row["failed"]}
    plan = {text_of(way): partial(candidate, operands, m, way=way, most_sets=SCREENED_CALLS) for way in wanted}
    ready = bench.prepare(trial, plan, account="screening")
    bench.measure(trial, ready, SCREENED_REPLAYS)
    times = {way: us for way in wanted if (us := trial["us"].get(text_of(way)))}
    return dict(sorted(times.items(), key=lambda pair: pair[1]))
