"""Timing on a GPU: CUDA graphs of calls over distinct weights, with nothing of them in the L2 when a replay begins."""

from __future__ import annotations

import math
import statistics

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core
from fdpp_ort.tuning.measurements import Candidate, Timed
from fdpp_ort.tuning.operands import FP8_MASK, INT4_SHIFTS, SCALES, check_result, multiply, weight_values
from fdpp_ort.tuning.products import DTYPES, Product

_OP_INPUT_ALIGNMENT = 256
_MOST_CALLS = 256  # of a graph: small weights need no more for times far above the clock's grain
_FEWEST_REPLAYS, _MOST_REPLAYS = 5, 50
_FAR_BEHIND = 1.25
_HEAD_START, _HEAD_START_CALL = 200_000, 3_000  # GPU clock ticks


class CudaTimer:
    """`pool_bytes` is what weights cover in turn, and what is read between replays; 0: four times the L2."""

    def __init__(self, seconds: float, pool_bytes: int = 0):
        try:
            import torch
        except ImportError as error:
            raise FdppError(f"tuning for a GPU needs PyTorch ({error}); pip install torch") from error
        if not torch.cuda.is_available():
            raise FdppError("tuning for a GPU needs a PyTorch that sees one; this one has no CUDA device")
        self._torch = torch
        self.device = core().gpu_device(torch.cuda.current_device())
        self._seconds = seconds
        self._pool_bytes = pool_bytes or 4 * self.device["l2_bytes"]
        self._flush = torch.ones(self._pool_bytes // 4, dtype=torch.int32, device="cuda")
        self._pools: dict[tuple[str, object], object] = {}  # by weight format or "scales", and type

    def _weights(self, product: Product) -> list[dict]:
        """B and scales (None where the format has none) of distinct weights."""
        torch = self._torch
        stored = getattr(torch, DTYPES[product.weight_format])
        step = _aligned(math.prod(product.stored_shape) * stored.itemsize)
        count = min(max(self._pool_bytes // step, 2), _MOST_CALLS)
        numbers = self._tensors(product.weight_format, stored, product.stored_shape, count)
        scales = [None] * count
        if product.scales_shape is not None:
            scales = self._tensors("scales", getattr(torch, product.dtype), product.scales_shape, count)
        return [{"B": b, "scales": s} for b, s in zip(numbers, scales, strict=True)]

    def _tensors(self, what: str, dtype, shape: tuple[int, ...], count: int) -> list:
        """Random numbers, each tensor at the alignment that allocations have."""
        size = math.prod(shape)
        step = _aligned(size * dtype.itemsize) // dtype.itemsize
        pool = self._pools.get((what, dtype))
        if pool is None or pool.numel() < count * step:
            pool = self._pools[what, dtype] = _drawn(self._torch, what, dtype, count * step)
        return [pool[i * step : i * step + size].view(shape) for i in range(count)]

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]:
        """Median times of `candidates`, whose graphs take turns."""
        torch = self._torch
        weights = self._weights(product)
        dtype = getattr(torch, product.dtype)
        a = torch.randn(m, product.k, dtype=dtype, device="cuda")
        expected = torch.empty(m, product.n, dtype=torch.float64, device="cuda")
        multiply(product, a.double(), lambda first, last: _values(torch, product, weights[-1], first, last), expected)
        residual = None
        if product.epilogue == "added":
            # As large as the product, so that neither can be missing unseen.
            residual = (torch.randn_like(expected) * expected.abs().mean()).to(dtype)
            expected += residual
        y = torch.empty(m, product.n, dtype=dtype, device="cuda")
        attributes = product.attributes

        def runner(candidate: Candidate):
            inputs = {"A": a, "residual": residual}
            options = {"variant": candidate.variant, "split": dict(candidate.split)}
            needed = core().plan_gemm(attributes, inputs | weights[0], self.device, **options)["workspace_bytes"]
            workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device="cuda")

            def run(weight: dict) -> None:
                stream = torch.cuda.current_stream().cuda_stream
                core().gemm(attributes, inputs | weight, {"Y": y}, workspace=workspace, stream=stream, **options)

            return run

        graphs = {}
        for candidate in candidates:
            run = runner(candidate)
            y.fill_(torch.nan)
            run(weights[-1])
            check_result(product, m, candidate, y, expected)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for weight in weights:
                    run(weight)
            graphs[candidate] = (graph, run)  # the graph reads the workspace that `run` holds
        times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
        for turn in range(-1, _MOST_REPLAYS):
            for candidate, (graph, _) in graphs.items():
                elapsed = self._replay(graph, len(weights)) / len(weights)
                if turn >= 0:  # the first round is not counted: clocks rise
                    times[candidate].append(elapsed)
            if turn == 0:  # what is far behind the best of its kind stays with this one time
                best = {kind: min(times[c][0] for c in graphs if c.kind == kind) for kind in {c.kind for c in graphs}}
                graphs = {c: g for c, g in graphs.items() if times[c][0] <= _FAR_BEHIND * best[c.kind]}
            spent = sum(sum(times[c]) for c in graphs) * len(weights) * 1e-6
            if turn + 1 >= _FEWEST_REPLAYS and spent > self._seconds * len(graphs):
                break
        return [Timed(candidate, statistics.median(values)) for candidate, values in times.items()]

    def _replay(self, graph, calls: int) -> float:
        """Microseconds of a graph of so many calls."""
        torch = self._torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.sum()
        # All of the replay is queued by the time that the clock starts.
        torch.cuda._sleep(_HEAD_START + _HEAD_START_CALL * calls)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _OP_INPUT_ALIGNMENT) * _OP_INPUT_ALIGNMENT


def _drawn(torch, what: str, dtype, count: int):
    """Random numbers of a weight format as they are stored, or "scales"."""
    if what == "scales":
        least, most = SCALES
        return (least + torch.rand(count, device="cuda") * (most - least)).to(dtype)
    if dtype.itemsize > 1:
        return torch.randn(count, dtype=dtype, device="cuda")
    numbers = torch.randint(256, (count,), dtype=torch.uint8, device="cuda")
    return (numbers & FP8_MASK if what == "fp8" else numbers).view(dtype)


def _values(torch, product: Product, weight: dict, first: int, last: int):
    """Rows of a weight in float64."""
    stored = weight["B"][first:last]
    stored = stored.view(torch.int32) if product.weight_format == "int4" else stored.double()
    scales = None if weight["scales"] is None else weight["scales"][first:last].double()
    return weight_values(product, stored, scales, torch.tensor(INT4_SHIFTS, device="cuda"))
