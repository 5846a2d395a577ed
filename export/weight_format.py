"""What --weights and --head-weights say: how the constant matrices of products are stored."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .dtypes import BY_FORMAT
from .errors import ExportError

BLOCK_SIZES = (16, 32, 64, 128)
WEIGHTS_HELP = "keep, f32, f16, bf16, int8, fp8 or int4[:BLOCK[:zero-points]], BLOCK 16, 32 (default), 64 or 128"
_DEFAULT_BLOCK_SIZE = 32
_ZERO_POINTS = "zero-points"
# As com.microsoft::MatMulNBits has it on CPUs, where integers are multiplied by integers then: products of numbers of 4
# bits by float32 have it where nobody says otherwise.
CPU_ACCURACY_LEVEL = 4
# Element type of the stored numbers; those of int4 are packed.
_QUANTISED = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN, "int4": ir.DataType.UINT8}


@dataclass(frozen=True)
class WeightFormat:
    """`name` is FdppFlatGemm's weight_format, or "keep". block_size and zero_points are int4's; 0 and False
    otherwise."""

    name: str
    block_size: int = 0
    zero_points: bool = False

    @staticmethod
    def parse(text: str, option: str = "weights") -> WeightFormat:
        """Raises ExportError, which names `option`, for what is no format."""
        name, *details = text.split(":")
        if name == "int4" and len(details) < 3 and (len(details) < 2 or details[1] == _ZERO_POINTS):
            block = details[0] if details else str(_DEFAULT_BLOCK_SIZE)
            if block in map(str, BLOCK_SIZES):
                return WeightFormat(name, int(block), len(details) == 2)
        elif not details and (name == "keep" or name in BY_FORMAT or name in _QUANTISED):
            return WeightFormat(name)
        raise ExportError(f"{option} is {text!r}, expected {WEIGHTS_HELP}")

    @property
    def quantised(self) -> bool:
        """Whether values are numbers times scales."""
        return self.name in _QUANTISED

    @property
    def of_head(self) -> WeightFormat:
        """That of the product that makes the logits, unless the user says another: int8 beside int4, whose error would
        reach the logits undamped."""
        return WeightFormat("int8") if self.name == "int4" else self

    def dtype(self, original: ir.DataType) -> ir.DataType:
        """Element type of what is stored for a weight of type `original`."""
        if self.quantised:
            return _QUANTISED[self.name]
        return original if self.name == "keep" else BY_FORMAT[self.name]

    def __str__(self) -> str:
        return ":".join((self.name, *([str(self.block_size)] if self.block_size else []), *self._suffix()))

    def _suffix(self) -> list[str]:
        return [_ZERO_POINTS] if self.zero_points else []
