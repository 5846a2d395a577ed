"""In what precision a reference computes, and how far a kernel may be from the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """``compute`` is the type of all arithmetic; a stored value is first rounded to the type of where it is stored."""

    compute: torch.dtype
    activation: torch.dtype
    cache: torch.dtype

    def stored(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.to(dtype).to(self.compute)


EXACT = Precision(torch.float64, torch.float64, torch.float64)


def naive(activation: torch.dtype, cache: torch.dtype | None = None) -> Precision:
    """What a plain kernel has: float32 arithmetic, everything stored in the op's own types."""
    return Precision(torch.float32, activation, cache or activation)


def assert_accurate(
    actual: torch.Tensor,
    reference: torch.Tensor,
    naive_result: torch.Tensor,
    dtype: torch.dtype,
    what: str = "result",
    size: torch.Tensor | None = None,
) -> None:
    """Fails unless |actual - reference| <= 2 * (the naive computation's error) + 2 units in the last place.

    All of one shape; ``reference`` float64, ``actual`` of ``dtype``. One element's naive error is a matter of luck, so
    the largest of all counts, in proportion to ``size``: how large values naturally are at each element (broadcast to
    the shape; default: the same everywhere). NaN fails.
    """
    assert actual.dtype == dtype, f"{what} is {actual.dtype}, expected {dtype}"
    assert actual.shape == reference.shape, f"{what} has shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    if actual.numel() == 0:
        return
    assert torch.isfinite(reference).all(), f"the reference of {what} is not finite"
    error = (actual.to("cpu", torch.float64) - reference).abs()
    if size is None:
        size = reference.abs().amax()
    size = size.to(torch.float64).expand_as(error)
    naive_error = (naive_result.to(torch.float64) - reference).abs()
    naive_error = (naive_error / size.clamp(min=torch.finfo(torch.float64).tiny)).amax() * size
    last_place = (size * torch.finfo(dtype).eps).clamp(min=torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    allowed = 2 * naive_error + 2 * last_place
    wrong = ~(error <= allowed)
    if wrong.any():
        excess = torch.where(torch.isfinite(error), error / allowed, torch.inf)
        index = tuple(int(i) for i in torch.unravel_index(excess.flatten().argmax(), error.shape))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are off; the worst at {list(index)} is "
            f"{actual[index].item():.9g}, expected {reference[index].item():.9g}: error {error[index].item():.3g}, "
            f"allowed {allowed[index].item():.3g} (the naive computation's: "
            f"{naive_error[index].item():.3g})"
        )
