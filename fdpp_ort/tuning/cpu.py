"""Timing on the CPU, in ONNX Runtime: the implementation for many rows is the runtime's own product, and its threads
are those that kernels get."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import numpy as np

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core, import_onnxruntime, register
from fdpp_ort.tuning.measurements import Candidate, Timed
from fdpp_ort.tuning.operands import FP8_MASK, INT4_SHIFTS, SCALES, check_result, multiply, weight_values
from fdpp_ort.tuning.products import Product

_OP = "FdppFlatGemm"
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 1000
_BLOCK = 4 << 20  # elements of the pool that are drawn; the rest repeats them
_ONE_MIB = 1 << 20
# By weight format: what NumPy holds it in, which has neither bfloat16 nor 8-bit floats, and ONNX's number for the type.
_STORED = {
    "f32": (np.float32, 1),
    "f16": (np.float16, 10),
    "bf16": (np.uint16, 16),
    "int8": (np.int8, 3),
    "fp8": (np.uint8, 17),
    "int4": (np.uint8, 2),
}


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
        self._pools: dict[str, np.ndarray] = {}  # by weight format, and "scales"
        self._turn = 0
        self._sessions: dict[bytes, object] = {}  # by model: products that differ in their blocks are equal

    def _pool(self, what: str, count: int) -> np.ndarray:
        """`count` random numbers or more."""
        pool = self._pools.get(what)
        if pool is None or pool.size < count:
            pool = self._pools[what] = np.resize(_drawn(what, min(_BLOCK, count)), count)
        return pool

    def _weights(self, product: Product) -> dict[str, np.ndarray]:
        """B and, where the format has them, scales, each of as many weights as cover the pool; at least of one."""
        stored, size = np.dtype(_STORED[product.weight_format][0]), math.prod(product.stored_shape)
        pool = self._pool(product.weight_format, max(self._pool_bytes // stored.itemsize, size))
        count = pool.size // size
        weights = {"B": pool[: count * size].reshape(count, *product.stored_shape)}
        if product.scales_shape is not None:
            size = count * math.prod(product.scales_shape)
            weights["scales"] = self._pool("scales", size)[:size].reshape(count, *product.scales_shape)
        return weights

    def _session(self, product: Product):
        model = _model(product)
        if model not in self._sessions:
            onnxruntime = import_onnxruntime()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            register(options)
            self._sessions = {  # one at a time: each has threads of its own
                model: onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            }
        return self._sessions[model]

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]:
        """Times of `candidates`, which take turns: the lower quartile, since others use the processor too."""
        native = core()
        session = self._session(product)
        binding = session.io_binding()
        weights = self._weights(product)
        types = {"B": _STORED[product.weight_format][1], "scales": _STORED["f32"][1]}
        random = np.random.default_rng(0)
        a = random.standard_normal((m, product.k), np.float32)
        binding.bind_cpu_input("A", a)
        expected = np.empty((m, product.n))
        multiply(product, a.astype(np.float64), lambda first, last: _values(product, weights, first, last), expected)
        if product.epilogue == "added":
            # As large as the product, so that neither can be missing unseen.
            residual = random.standard_normal(expected.shape, np.float32) * np.float32(np.abs(expected).mean())
            binding.bind_cpu_input("residual", residual)
            expected += residual
        y = np.empty(expected.shape, np.float32)
        binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def run(candidate: Candidate, index: int) -> float:
            for name, pool in weights.items():
                binding.bind_input(name, "cpu", 0, types[name], pool.shape[1:], pool[index].ctypes.data)
            native.force_variant(_OP, candidate.variant)  # which says it all: on the CPU each has one split
            start = time.perf_counter()
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise FdppError(f"{product.title}, M={m}: ONNX Runtime failed: {error}") from error
            return time.perf_counter() - start

        times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
        try:
            for candidate in candidates:  # not counted: threads wake, memory is mapped
                y.fill(np.nan)
                run(candidate, 0)
                check_result(f"{product.title}, M={m}", candidate, y, expected)
            end = time.perf_counter() + self._seconds * len(candidates)
            for turn in range(_MOST_ROUNDS):
                if turn >= _FEWEST_ROUNDS and time.perf_counter() > end:
                    break
                for candidate in candidates:
                    self._turn += 1
                    times[candidate].append(run(candidate, self._turn % len(weights["B"])))
        finally:
            native.force_variant(_OP, None)
        return [Timed(candidate, sorted(values)[len(values) // 4] * 1e6) for candidate, values in times.items()]


def _drawn(what: str, count: int) -> np.ndarray:
    """Random numbers of a weight format as they are stored, or "scales"."""
    random = np.random.default_rng(0)
    if what == "scales":
        return random.uniform(*SCALES, count).astype(np.float32)
    if what in ("int8", "fp8", "int4"):
        numbers = random.integers(0, 256, count, np.uint8)
        return numbers & FP8_MASK if what == "fp8" else numbers.view(_STORED[what][0])
    numbers = random.standard_normal(count, np.float32)
    if what == "bf16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)  # cut off, not rounded: any values will do
    return numbers.astype(_STORED[what][0])


def _values(product: Product, weights: dict[str, np.ndarray], first: int, last: int) -> np.ndarray:
    """Rows of the first weight in float64."""
    stored = weights["B"][0, first:last]
    scales = weights["scales"][0, first:last].astype(np.float64) if "scales" in weights else None
    if product.weight_format == "int4":
        stored = stored.view(np.int32)
    elif product.weight_format == "fp8":
        stored = _fp8_values()[stored]
    elif product.weight_format == "bf16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        stored = stored.astype(np.float64)
    return weight_values(product, stored, scales, np.array(INT4_SHIFTS))


def _fp8_values() -> np.ndarray:
    """What each byte stands for as a float8e4m3fn, NaN aside."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    return np.where(byte < 128, magnitude, -magnitude)


def _model(product: Product) -> bytes:
    """FdppFlatGemm alone, its weights an input: what they hold and where changes from call to call."""
    try:
        from onnx import helper
    except ImportError as error:
        raise FdppError(f"tuning for the CPU needs onnx ({error}); pip install onnx") from error
    stored, float32 = _STORED[product.weight_format][1], _STORED["f32"][1]
    inputs = [
        helper.make_tensor_value_info("A", float32, ["M", product.k]),
        helper.make_tensor_value_info("B", stored, product.stored_shape),
    ]
    names = ["A", "B", "", "", "", ""]
    if product.scales_shape is not None:
        inputs.append(helper.make_tensor_value_info("scales", float32, product.scales_shape))
        names[2] = "scales"
    if product.epilogue == "added":
        inputs.append(helper.make_tensor_value_info("residual", float32, ["M", product.n]))
        names[5] = "residual"
    node = helper.make_node(_OP, names, ["Y"], name="tuned", domain="fdpp", **product.attributes)
    output = helper.make_tensor_value_info("Y", float32, ["M", product.n])
    graph = helper.make_graph([node], "tuned", inputs, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("fdpp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
