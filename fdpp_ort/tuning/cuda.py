"""Timing on a GPU: CUDA graphs of calls over distinct weights, or caches of attention, with nothing of them in the L2
when a replay begins."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core
from fdpp_ort.tuning.attention import AttentionShape, reference
from fdpp_ort.tuning.candidates import attention_candidates
from fdpp_ort.tuning.measurements import Candidate, Timed
from fdpp_ort.tuning.operands import FP8_MASK, INT4_SHIFTS, SCALES, check_result, multiply, weight_values
from fdpp_ort.tuning.products import DTYPES, Product

_OP_INPUT_ALIGNMENT = 256
# Of a graph: small weights need no more for times far above the clock's grain; few large ones come round again, for the
# first call of a graph and the last do not overlap with a neighbour as those between do.
_FEWEST_SETS, _FEWEST_CALLS, _MOST_CALLS = 2, 12, 256
_FEWEST_REPLAYS, _MOST_REPLAYS = 5, 50
_FAR_BEHIND = 1.25
_HEAD_START, _HEAD_START_CALL = 200_000, 3_000  # GPU clock ticks


class CudaTimer:
    """`pool_bytes` is what weights or caches cover in turn, and what is read between replays; 0: four times the L2."""

    def __init__(self, seconds: float, pool_bytes: int = 0):
        try:
            import torch
        except ImportError as error:
            raise FdppError(f"tuning for a GPU needs PyTorch ({error}); pip install torch") from error
        if not torch.cuda.is_available():
            raise FdppError("tuning for a GPU needs a PyTorch that sees one; this one has no CUDA device")
        self._torch = torch
        self.device = core().gpu_device(torch.cuda.current_device())
        self.cache_bytes = torch.cuda.mem_get_info()[0] // (2 * _FEWEST_SETS)  # half of what is free, for all calls
        self._seconds = seconds
        self._pool_bytes = pool_bytes or 4 * self.device["l2_bytes"]
        self._flush = torch.ones(self._pool_bytes // 4, dtype=torch.int32, device="cuda")
        self._pools: dict[tuple[str, object], object] = {}  # by format or "scales", and type

    def _weights(self, product: Product) -> list[dict]:
        """B and scales (None where the format has none) of distinct weights."""
        torch = self._torch
        stored = getattr(torch, DTYPES[product.weight_format])
        step = _aligned(math.prod(product.stored_shape) * stored.itemsize)
        count = self._sets(step)
        numbers = self._tensors(product.weight_format, stored, product.stored_shape, count)
        scales = [None] * count
        if product.scales_shape is not None:
            scales = self._tensors("scales", getattr(torch, product.dtype), product.scales_shape, count)
        return [{"B": b, "scales": s} for b, s in zip(numbers, scales, strict=True)]

    def _sets(self, step_bytes: int) -> int:
        """Of operands, where each call reads so many bytes of its own."""
        return min(max(self._pool_bytes // step_bytes, _FEWEST_SETS), _MOST_CALLS)

    def _tensors(self, what: str, dtype, shape: tuple[int, ...], count: int) -> list:
        """Random numbers, each tensor at the alignment that allocations have."""
        size = math.prod(shape)
        step = _aligned(size * dtype.itemsize) // dtype.itemsize
        pool = self._pools.get((what, dtype))
        if pool is None or pool.numel() < count * step:
            pool = None  # its memory may be needed for what takes its place
            self._pools.pop((what, dtype), None)
            pool = self._pools[what, dtype] = _drawn(self._torch, what, dtype, count * step)
        return [pool[i * step : i * step + size].view(shape) for i in range(count)]

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]:
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
        calls = [({"A": a, "residual": residual} | weight, {"Y": y}) for weight in weights]

        def check(candidate: Candidate) -> None:
            check_result(f"{product.title}, M={m}", candidate, y, expected)

        return self._race("gemm", product.attributes, calls, candidates, check)

    def measure_attention(self, shape: AttentionShape, batch: int, context: int) -> list[Timed]:
        """Of every way to run it, the library's own choice first. One new token a row is appended in place."""
        torch = self._torch
        dtype, stored = getattr(torch, shape.dtype), getattr(torch, DTYPES[shape.cache_format])
        count = self._sets(shape.cache_bytes(batch, context))
        tensors = self._tensors(shape.cache_format, stored, shape.cache_shape(batch, context), 2 * count)
        caches = list(zip(tensors[:count], tensors[count:], strict=True))

        def tokens(heads: int):
            return torch.randn(batch, 1, heads * shape.head_size, dtype=dtype, device="cuda")

        inputs = {
            "query": tokens(shape.q_heads),
            "key": tokens(shape.kv_heads),
            "value": tokens(shape.kv_heads),
            "seqlens_k": torch.full((batch,), context - 1, dtype=torch.int32, device="cuda"),
            "total_sequence_length": context,
        }
        if shape.scale is not None:
            inputs |= dict.fromkeys(("k_scale", "v_scale"), torch.full((1,), shape.scale, device="cuda"))
        output = torch.empty_like(inputs["query"])
        calls = [
            (
                inputs | {"past_key": key, "past_value": value},
                {"output": output, "present_key": key, "present_value": value},
            )
            for key, value in caches
        ]
        expected = None

        def check(candidate: Candidate) -> None:
            nonlocal expected
            if expected is None:  # not before a call has appended the token
                expected = reference(shape, inputs["query"], *caches[-1])
            what = f"{shape.title}, batch {batch}, context {context}"
            check_result(what, candidate, output.view(expected.shape), expected)

        candidates = attention_candidates(shape, calls[0][0], self.device)
        return self._race("attention", shape.attributes, calls, candidates, check)

    def _race(
        self,
        op: str,
        attributes: dict,
        calls: list[tuple[dict, dict]],
        candidates: list[Candidate],
        check: Callable[[Candidate], None],
    ) -> list[Timed]:
        """Median times of `candidates`, whose graphs take turns. `op`: core()'s name of it; `calls`: inputs and
        outputs, of which the first is the result and the same for all; `check` is asked once it is the last call's."""
        torch = self._torch
        plan_op, run_op = getattr(core(), f"plan_{op}"), getattr(core(), op)
        result = next(iter(calls[-1][1].values()))

        def runner(candidate: Candidate):
            options = {"variant": candidate.variant, "split": dict(candidate.split)}
            needed = plan_op(attributes, calls[0][0], self.device, **options)["workspace_bytes"]
            workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device="cuda")

            def run(inputs: dict, outputs: dict) -> None:
                stream = torch.cuda.current_stream().cuda_stream
                run_op(attributes, inputs, outputs, workspace=workspace, stream=stream, **options)

            return run

        graphs = {}
        in_graph = calls * math.ceil(_FEWEST_CALLS / len(calls))
        for candidate in candidates:
            run = runner(candidate)
            result.fill_(torch.nan)
            run(*calls[-1])
            check(candidate)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in in_graph:
                    run(*call)
            graphs[candidate] = (graph, run)  # the graph reads the workspace that `run` holds
        times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
        for turn in range(-1, _MOST_REPLAYS):
            for candidate, (graph, _) in graphs.items():
                elapsed = self._replay(graph, len(in_graph)) / len(in_graph)
                if turn >= 0:  # the first round is not counted: clocks rise
                    times[candidate].append(elapsed)
            if turn == 0:  # what is far behind the best of its kind stays with this one time
                best = {kind: min(times[c][0] for c in graphs if c.kind == kind) for kind in {c.kind for c in graphs}}
                graphs = {c: g for c, g in graphs.items() if times[c][0] <= _FAR_BEHIND * best[c.kind]}
            spent = sum(sum(times[c]) for c in graphs) * len(in_graph) * 1e-6
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
    return (numbers.bitwise_and_(FP8_MASK) if what == "fp8" else numbers).view(dtype)


def _values(torch, product: Product, weight: dict, first: int, last: int):
    """Rows of a weight in float64."""
    stored = weight["B"][first:last]
    stored = stored.view(torch.int32) if product.weight_format == "int4" else stored.double()
    scales = None if weight["scales"] is None else weight["scales"][first:last].double()
    return weight_values(product, stored, scales, torch.tensor(INT4_SHIFTS, device="cuda"))
