"""The tensors of a case: views of pools of random numbers that all cases share, and the float64 results of the first of
each weight's sets, which candidates are held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from common.accuracy import WrongResult, relative_error
from common.pool import FILL_ELEMENTS, Pool

from gemm.cases import FORMATS, MOST_ROWS, Case

ALIGNMENT = 256
REFERENCE_ELEMENTS = 1 << 28  # of the weight that are there in float64 at a time
_DTYPES = {"f16": torch.float16, "int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}


def aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def interleaved(packed: torch.Tensor) -> torch.Tensor:
    """int4 numbers in the order of MatMulNBits (that of k, low halves first) as FdppFlatGemm has them: of each eight
    those of even k first. uint8 [..., 4 x bytes], in which a row's place does not matter."""
    words = packed.contiguous().view(torch.int32)

    def even(w: torch.Tensor) -> torch.Tensor:
        return (w & 0xF) | (w >> 4 & 0xF0) | (w >> 8 & 0xF00) | (w >> 12 & 0xF000)

    return (even(words) | even(words >> 4) << 16).view(torch.uint8)


class Pools:
    """One pool for each kind of numbers, made when first asked for. The int4 numbers are there twice, in the order of
    MatMulNBits and in ours."""

    def __init__(self, cases: list[Case], least_bytes: int = 0, device: str = "cuda"):
        """`least_bytes`: of the float16 weights."""
        self._device = device
        self._made: dict[str, torch.Tensor] = {}
        self._bytes = {"f16": least_bytes}
        self._scales = 0
        for case in cases:
            for name in case.formats:
                format = FORMATS[name]
                kind, sets = format.weight_format, case.sets(name)
                needed = sets * aligned(case.n * case.k * format.bits // 8)
                self._bytes[kind] = max(self._bytes.get(kind, 0), needed)
                self._scales = max(self._scales, sets * aligned(2 * format.scales(case.n, case.k)))

    def weights(self, kind: str) -> torch.Tensor:
        if kind not in self._made:
            self._made[kind] = Pool(self._bytes[kind], _DTYPES[kind], self._device).data
        return self._made[kind]

    @cached_property
    def int4_interleaved(self) -> torch.Tensor:
        numbers = self.weights("int4")
        out = torch.empty_like(numbers)
        for source, target in zip(numbers.split(FILL_ELEMENTS), out.split(FILL_ELEMENTS), strict=True):
            target.copy_(interleaved(source))
        return out

    @cached_property
    def scales(self) -> torch.Tensor:
        """Positive, of one size all."""
        return (0.1 + torch.rand(self._scales // 2, device=self._device) / 5).half()


class Weights:
    """The sets of one weight [N, K] in one format."""

    def __init__(self, pools: Pools, case: Case, name: str):
        self.n, self.k, self.format, self.sets = case.n, case.k, FORMATS[name], case.sets(name)
        self._count = self.format.scales(self.n, self.k)
        kind = self.format.weight_format
        self._stored = pools.weights(kind)
        self._given = pools.int4_interleaved if kind == "int4" else self._stored
        self._scales = pools.scales if self._count else None

    @property
    def attributes(self) -> dict[str, object]:
        """FdppFlatGemm's."""
        format = self.format
        return {"N": self.n, "K": self.k, "weight_format": format.weight_format, "block_size": format.block_size}

    def _view(self, pool: torch.Tensor, index: int, elements: int) -> torch.Tensor:
        first = index * aligned(elements * pool.element_size()) // pool.element_size()
        return pool[first : first + elements].view(self.n, -1)

    def _numbers(self, pool: torch.Tensor, index: int) -> torch.Tensor:
        return self._view(pool, index, self.n * self.k * self.format.bits // 8 // pool.element_size())

    def inputs(self, index: int) -> dict[str, torch.Tensor]:
        """B and scales of a set, FdppFlatGemm's."""
        found = {"B": self._numbers(self._given, index)}
        if self._count:
            scales = self._view(self._scales, index, self._count)
            found["scales"] = scales if self.format.block_size else scales.view(-1)
        return found

    def matmul_nbits(self, index: int) -> dict[str, torch.Tensor]:
        """B [N, blocks, bytes] and scales [N, blocks] of a set as MatMulNBits takes them: the same numbers."""
        scales = self.inputs(index)["scales"]
        return {"B": self._numbers(self._stored, index).view(*scales.shape, -1), "scales": scales}

    def as_columns(self, index: int) -> torch.Tensor:
        """A set's float16 numbers as a matrix [K, N], which is another weight than [N, K]."""
        return self.inputs(index)["B"].view(self.k, self.n)

    def values(self, first: int, last: int) -> torch.Tensor:
        """Rows of the first set in float32, which holds all of them exactly."""
        numbers = self._numbers(self._stored, 0)[first:last]
        if not self._count:
            return numbers.float()
        scales = self.inputs(0)["scales"][first:last].float()
        if not self.format.block_size:
            return numbers.float() * scales[:, None]
        pairs = torch.stack((numbers & 15, numbers >> 4), dim=-1).view(*scales.shape, -1)
        return ((pairs.float() - 8) * scales[..., None]).flatten(1)


class Expected:
    """A [M, K] times a weight [N, K] in float64, and how far a plain float32 loop is from it: the rule of
    tests/reference/precision.py for the first rows of A, as many as a case has."""

    def __init__(self, a: torch.Tensor, n: int, values: Callable[[int, int], torch.Tensor]):
        """values(first, last): rows of the weight in float32."""
        rows, k = a.shape
        self.exact = torch.empty(rows, n, dtype=torch.float64, device=a.device)
        self._size = torch.zeros(rows, dtype=torch.float64, device=a.device)  # of the largest element of each row
        self._naive_error = torch.zeros_like(self._size)
        columns_a = a.float().T.contiguous()
        step = max(1, REFERENCE_ELEMENTS // k)
        for first in range(0, n, step):
            weight = values(first, min(first + step, n))
            exact = a.double() @ weight.double().T
            naive = torch.zeros(rows, len(weight), device=a.device)
            for column_a, column_b in zip(columns_a, weight.T.contiguous(), strict=True):
                naive.addr_(column_a, column_b)
            self.exact[:, first : first + step] = exact
            self._size = torch.maximum(self._size, exact.abs().amax(1))
            self._naive_error = torch.maximum(self._naive_error, (naive.half().double() - exact).abs().amax(1))

    def check(self, result: torch.Tensor, limit: float | None) -> float:
        """The relative error of a result [M, N]. Raises WrongResult where it is above `limit`; None: where an element
        is further away than twice the plain loop's worst and two units in the last place."""
        m = len(result)
        exact = self.exact[:m]
        error = relative_error(result, exact)
        if limit is not None:
            if not error < limit:
                raise WrongResult(f"relative error {error:.1e}, expected less than {limit:.0e}")
            return error
        worst = (result.double() - exact).abs().amax().item()
        last_place = torch.finfo(torch.float16).eps * self._size[:m].amax().item()
        allowed = 2 * self._naive_error[:m].amax().item() + 2 * last_place
        if not worst <= allowed:
            raise WrongResult(f"an element is off by {worst:.2e}, allowed {allowed:.2e} (relative error {error:.1e})")
        return error


class Operands:
    """A, Y, and the weights of one [N, K]: made once for all its cases."""

    def __init__(self, case: Case, pools: Pools):
        self.case, self._pools = case, pools
        self._weights: dict[str, Weights] = {}
        self._expected: dict[str, Expected] = {}
        device = pools.weights("f16").device
        self.a = torch.randn(MOST_ROWS, case.k, device=device).half()
        self.y = torch.empty(MOST_ROWS, case.n, dtype=torch.float16, device=device)

    def weights(self, name: str = "f16") -> Weights:
        if name not in self._weights:
            self._weights[name] = Weights(self._pools, self.case, name)
        return self._weights[name]

    def expected(self, name: str = "f16") -> Expected:
        if name not in self._expected:
            self._expected[name] = Expected(self.a, self.case.n, self.weights(name).values)
        return self._expected[name]

    @cached_property
    def expected_of_columns(self) -> Expected:
        columns = self.weights().as_columns(0)
        return Expected(self.a, self.case.n, lambda first, last: columns[:, first:last].T.float())
