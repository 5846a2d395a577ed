"""Timing on the CPU, in ONNX Runtime: the implementation for many rows is the runtime's own product, and its threads
are those that kernels get."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core, import_onnxruntime, register
from fdpp_ort.tuning.measurements import Candidate, Timed
from fdpp_ort.tuning.products import Product

_OP = "FdppFlatGemm"
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 1000
_BLOCK = 4 << 20  # elements of the pool that are drawn; the rest repeats them
_ONE_MIB = 1 << 20


def _last_cache_bytes() -> int:
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KM]?)\s*", file.read_text(encoding="ascii")):
            sizes.append(int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found[2]])
    return max(sizes, default=32 * _ONE_MIB)


class CpuTimer:
    """Times calls over weights that take turns in more memory than the last cache holds (`pool_bytes`; 0: twice it), so
    that each comes from memory, as in a model."""

    def __init__(self, seconds: float, pool_bytes: int = 0):
        self.device = core().cpu_device() | {"host_gemm": True}
        self._seconds = seconds
        self._pool_bytes = pool_bytes or 2 * _last_cache_bytes()
        self._pools: dict[str, np.ndarray] = {}  # bytes, by weight format
        self._turn = 0
        self._sessions: dict[Product, object] = {}

    def _pool(self, product: Product) -> np.ndarray:
        """Bytes of weights; at least one matrix."""
        size = max(self._pool_bytes, product.weight_bytes)
        pool = self._pools.get(product.weight_format)
        if pool is None or pool.nbytes < size:
            drawn = np.random.default_rng(0).standard_normal(min(_BLOCK, size // 2 + 1), np.float32)
            if product.weight_format == "f16":
                drawn = drawn.astype(np.float16)
            elif product.weight_format == "bf16":
                drawn = (drawn.view(np.uint32) >> 16).astype(np.uint16)  # cut off, not rounded: any values will do
            pool = self._pools[product.weight_format] = np.resize(drawn.view(np.uint8), size)
        return pool

    def _session(self, product: Product):
        if product not in self._sessions:
            onnxruntime = import_onnxruntime()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            register(options)
            self._sessions = {  # one at a time: each has threads of its own
                product: onnxruntime.InferenceSession(_model(product), options, providers=["CPUExecutionProvider"])
            }
        return self._sessions[product]

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]:
        """Times of `candidates`, which take turns: the lower quartile, since others use the processor too."""
        native = core()
        session = self._session(product)
        binding = session.io_binding()
        random = np.random.default_rng(0)
        binding.bind_cpu_input("A", random.standard_normal((m, product.k), np.float32))
        if product.epilogue == "added":
            binding.bind_cpu_input("residual", random.standard_normal((m, product.n), np.float32))
        y = np.empty((m, product.n), np.float32)
        binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        pool = self._pool(product)
        weights = pool.nbytes // product.weight_bytes
        element_type = {"f32": 1, "f16": 10, "bf16": 16}[product.weight_format]

        def run(candidate: Candidate) -> float:
            self._turn += 1
            address = pool.ctypes.data + self._turn % weights * product.weight_bytes
            binding.bind_input("B", "cpu", 0, element_type, (product.n, product.k), address)
            native.force_variant(_OP, candidate.variant)  # which says it all: on the CPU each has one split
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            return time.perf_counter() - start

        times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
        try:
            for candidate in candidates:  # not counted: threads wake, memory is mapped
                run(candidate)
            end = time.perf_counter() + self._seconds * len(candidates)
            for turn in range(_MOST_ROUNDS):
                if turn >= _FEWEST_ROUNDS and time.perf_counter() > end:
                    break
                for candidate in candidates:
                    times[candidate].append(run(candidate))
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise FdppError(f"{product.title}, M={m}: ONNX Runtime failed: {error}") from error
        finally:
            native.force_variant(_OP, None)
        return [Timed(candidate, sorted(values)[len(values) // 4] * 1e6) for candidate, values in times.items()]


def _model(product: Product) -> bytes:
    """FdppFlatGemm alone, its weights an input: what they hold and where changes from call to call."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise FdppError(f"tuning for the CPU needs onnx ({error}); pip install onnx") from error
    types = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    inputs = [
        helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", product.k]),
        helper.make_tensor_value_info("B", types[product.weight_format], [product.n, product.k]),
    ]
    names = ["A", "B"]
    if product.epilogue == "added":
        inputs.append(helper.make_tensor_value_info("residual", TensorProto.FLOAT, ["M", product.n]))
        names += ["", "", "", "residual"]
    attributes = {"N": product.n, "K": product.k, "weight_format": product.weight_format}
    node = helper.make_node(_OP, names, ["Y"], name="tuned", domain="fdpp", **attributes)
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", product.n])
    graph = helper.make_graph([node], "tuned", inputs, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("fdpp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
