"""Timing on a GPU: CUDA graphs of calls over distinct weights, with nothing of them in the L2 when a replay begins."""

from __future__ import annotations

import statistics

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core
from fdpp_ort.tuning.measurements import Candidate, Timed
from fdpp_ort.tuning.products import DTYPES, Product

_OP_INPUT_ALIGNMENT = 256
_MOST_CALLS = 256  # of a graph: small weights need no more for times far above the clock's grain
_FEWEST_REPLAYS, _MOST_REPLAYS = 5, 50
_FAR_BEHIND = 1.25
_HEAD_START, _HEAD_START_CALL = 200_000, 3_000  # GPU clock ticks
_TOLERANCE = 1e-2  # relative error of a result, far above any rounding and far below what a wrong one has


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
        self._pools: dict[str, object] = {}

    def _weights(self, product: Product) -> list:
        """Distinct matrices [N, K], each at the alignment that allocations have."""
        torch = self._torch
        dtype = getattr(torch, DTYPES[product.weight_format])
        step = -(-product.weight_bytes // _OP_INPUT_ALIGNMENT) * _OP_INPUT_ALIGNMENT // dtype.itemsize
        elements = max(self._pool_bytes // dtype.itemsize, 2 * step)
        pool = self._pools.get(product.weight_format)
        if pool is None or pool.numel() < elements:
            pool = self._pools[product.weight_format] = torch.randn(elements, dtype=dtype, device="cuda")
        size = product.n * product.k
        count = min(pool.numel() // step, _MOST_CALLS)
        return [pool[i * step : i * step + size].view(product.n, product.k) for i in range(count)]

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]:
        """Median times of `candidates`, whose graphs take turns."""
        torch = self._torch
        weights = self._weights(product)
        dtype = weights[0].dtype
        a = torch.randn(m, product.k, dtype=dtype, device="cuda")
        residual = torch.randn(m, product.n, dtype=dtype, device="cuda") if product.epilogue == "added" else None
        y = torch.empty(m, product.n, dtype=dtype, device="cuda")
        attributes = {"N": product.n, "K": product.k, "weight_format": product.weight_format}
        expected = a.double() @ weights[-1].double().T + (0 if residual is None else residual.double())

        def runner(candidate: Candidate):
            inputs = {"A": a, "B": weights[0], "residual": residual}
            options = {"variant": candidate.variant, "split": dict(candidate.split)}
            needed = core().plan_gemm(attributes, inputs, self.device, **options)["workspace_bytes"]
            workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device="cuda")

            def run(weight) -> None:
                stream = torch.cuda.current_stream().cuda_stream
                tensors = inputs | {"B": weight}
                core().gemm(attributes, tensors, {"Y": y}, workspace=workspace, stream=stream, **options)

            return run

        graphs = {}
        for candidate in candidates:
            run = runner(candidate)
            run(weights[-1])
            error = ((y.double() - expected).norm() / expected.norm()).item()
            if not error < _TOLERANCE:
                raise FdppError(
                    f"{product.title}, M={m}: {candidate.variant} {dict(candidate.split)} is wrong: relative error "
                    f"{error:.1e}, expected less than {_TOLERANCE:.0e}"
                )
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
