"""What is measured: the products of models, of what was never tuned, and of the paper's experiments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.cold import sets_for

# N, K; the weights of q, k and v lie in one matrix, those of gate and up too.
MODELS = {
    "Llama2-7B": ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32000, 4096)),
    "Llama2-13B": ((15360, 5120), (5120, 5120), (27648, 5120), (5120, 13824), (32000, 5120)),
    "OPT-6.7B": ((12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384), (50272, 4096)),
    "ChatGLM2-6B": ((4608, 4096), (4096, 4096), (27392, 4096), (4096, 13696), (65024, 4096)),
    "Llama3-8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)),
    "Qwen2.5-0.5B": ((1152, 896), (896, 896), (9728, 896), (896, 4864), (151936, 896)),
    "Qwen2.5-7B": ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (152064, 3584)),
}
ROLES = ("qkv", "o", "up", "down", "head")  # "up": the first product of the feed-forward part
QUANTISED_MODELS = ("Llama2-7B", "Llama3-8B", "Qwen2.5-7B")
PARTS = ("main", "quantised", "t2", "t3")

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FEW_ROWS = (1, 4, 8, 16, 32)
QUANTISED_ROWS = (1, 2, 4, 8, 16)
MOST_ROWS = 64

# The paper's experiment on the flat kind: N varies.
T2_N = tuple(1024 << i for i in range(8))
T2_K, T2_ROWS, T2_PADDED = 4096, 8, 64

# Values of M that fdpp-tune does not time, for weights of the models above; and weights of other models.
T3_ROWS = (5, 7, 10, 14, 20, 28, 40, 56)
T3_TUNED = (
    *((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32000, 4096), (5120, 5120), (6144, 4096)),
    *((28672, 4096), (896, 4864), (3584, 18944)),
)
T3_OTHER_ROWS = (1, 2, 3, 5, 8, 12, 16, 20, 32, 56)
T3_OTHER = (
    *((9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192)),  # Phi-3-mini
    *((2048, 1536), (17920, 1536), (1536, 8960)),  # Qwen2.5-1.5B
    *((10240, 8192), (8192, 8192), (8192, 28672)),  # Llama3-70B
)


@dataclass(frozen=True)
class Format:
    """Weights as FdppFlatGemm takes them."""

    weight_format: str
    bits: int
    block_size: int = 0

    def scales(self, n: int, k: int) -> int:
        """How many a matrix has."""
        if self.weight_format == "f16":
            return 0
        return n * -(-k // self.block_size) if self.block_size else n

    def bytes(self, n: int, k: int) -> int:
        """Of a matrix with its scales."""
        return n * k * self.bits // 8 + 2 * self.scales(n, k)


FORMATS = {
    "f16": Format("f16", 16),
    "int4_32": Format("int4", 4, 32),
    "int4_128": Format("int4", 4, 128),
    "int8": Format("int8", 8),
    "fp8": Format("fp8", 8),
}


@dataclass(frozen=True)
class Case:
    """Y [M, N] = A [M, K] · B [N, K]ᵀ."""

    part: str
    n: int
    k: int
    m: int

    @property
    def key(self) -> str:
        return f"{self.part} {self.n}x{self.k} M{self.m}"

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(FORMATS) if self.part == "quantised" else ("f16",)

    def weight_bytes(self, name: str = "f16") -> int:
        return FORMATS[name].bytes(self.n, self.k)

    def sets(self, name: str = "f16") -> int:
        return sets_for(self.weight_bytes(name))


def titles(n: int, k: int) -> list[str]:
    """Whose weight it is."""
    return [
        f"{model} {role}"
        for model, shapes in MODELS.items()
        for role, shape in zip(ROLES, shapes, strict=True)
        if shape == (n, k)
    ]


def _products(part: str, shapes: Iterable[tuple[int, int]], rows: Iterable[int]) -> list[Case]:
    return [Case(part, n, k, m) for n, k in dict.fromkeys(shapes) for m in rows]


def selected(
    parts: list[str], models: list[str], rows: list[int], shapes: list[tuple[int, int]] | None = None
) -> list[Case]:
    """The cases of `parts` in the order in which they run, those of one weight together. `rows`: of the main part.
    `models`: of the main part, and those among them that the quantised part has. `shapes`: in place of the models'."""
    main = shapes or [shape for model in models for shape in MODELS[model]]
    quantised = shapes or [shape for model in models if model in QUANTISED_MODELS for shape in MODELS[model]]
    cases = {
        "main": _products("main", main, rows),
        "quantised": _products("quantised", quantised, QUANTISED_ROWS),
        "t2": _products("t2", [(n, T2_K) for n in T2_N], (T2_ROWS,)),
        "t3": _products("t3", T3_OTHER, T3_OTHER_ROWS) + _products("t3", T3_TUNED, T3_ROWS),
    }
    return [case for part in parts for case in cases[part]]


def estimated_seconds(case: Case, screened: int, candidates: int, replays: int) -> float:
    """GPU time of a case: `screened` ways in short graphs, then candidates in full ones."""
    call = max(case.weight_bytes() / 4e12, 4e-6)
    started = 3e-4  # filling the L2 and the head start of a replay
    quick = screened * 4 * (started + 16 * call)
    return quick + candidates * (replays + 1) * (started + case.sets() * call)
