"""What random weights stand for and whether a result is theirs: for NumPy's arrays and PyTorch's tensors alike."""

from __future__ import annotations

from collections.abc import Callable

from fdpp_ort.errors import FdppError
from fdpp_ort.tuning.measurements import Candidate
from fdpp_ort.tuning.products import Product

# Any byte is two int4 numbers or one of int8. Of fp8 numbers without this bit of the exponent none is NaN, and all are
# below 2, so that no few of them outweigh the others.
FP8_MASK = 0xBF
SCALES = (0.01, 0.03)
# Where the eight int4 numbers of a 32-bit word lie, in the order of k.
INT4_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
_REFERENCE_ELEMENTS = 1 << 26  # of the weight that are there in float64 at a time
# Relative error of a result: above what any rounding makes, A's to int8 included, below what a wrong result has.
_TOLERANCE = 2e-2


def weight_values(product: Product, stored, scales, shifts):
    """Rows of the weight, [rows, K]. `stored`: theirs of B in float64, of int4 as 32-bit words; `scales`: theirs in
    float64 or None; `shifts`: INT4_SHIFTS as an array."""
    if scales is None:
        return stored
    if not product.block_size:
        return stored * scales[:, None]
    numbers = (stored[..., None] >> shifts & 15).reshape(*scales.shape, product.block_size)
    return ((numbers - 8) * scales[..., None]).reshape(len(scales), -1)[:, : product.k]


def multiply(product: Product, a, values: Callable[[int, int], object], y) -> None:
    """y [M, N] = a [M, K] times the weight, of which values(first, last) are rows; all in float64."""
    step = max(1, _REFERENCE_ELEMENTS // product.k)
    for first in range(0, product.n, step):
        last = min(first + step, product.n)
        y[:, first:last] = a @ values(first, last).T


def check_result(what: str, candidate: Candidate, y, expected) -> None:
    """FdppError: `y` is further from `expected`, in float64, than rounding explains."""
    difference = y - expected
    error = float((difference * difference).sum() / (expected * expected).sum()) ** 0.5
    if not error < _TOLERANCE:
        raise FdppError(
            f"{what}: {candidate.variant} {dict(candidate.split)} is wrong: relative error "
            f"{error:.1e}, expected less than {_TOLERANCE:.0e}"
        )
