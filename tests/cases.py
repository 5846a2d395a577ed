"""The shapes that kernels are tested and benchmarked on: one table for both ops, and a GPU to plan for.

A selection rather than the full product: each axis cycles with its own period, so that pairs of values meet;
``unit/test_cases.py`` checks that each value of each axis is there for each combination of element types.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_SIZES = (32, 64, 80, 96, 128, 192, 256)
GROUPS = (1, 2, 3, 4, 6, 7, 8, 12, 16)
CONTEXTS = (
    1,
    2,
    15,
    16,
    17,
    31,
    33,
    63,
    64,
    65,
    100,
    127,
    128,
    129,
    255,
    257,
    500,
    511,
    1000,
    1023,
    2047,
    2049,
    4095,
    8191,
)
NEW_TOKENS = (1, 2, 7, 64, 513)
ROTARY = ("none", "half", "interleaved", "partial")
CACHES = ("in_place", "grown", "copied")
SOFTMAX_MODES = ("lazy", "online")
# (type of activations, type of the cache or of the weights)
ATTENTION_TYPES = (("float32", "float32"), ("float32", "float16"), ("float16", "float16"), ("bfloat16", "bfloat16"))
GEMM_TYPES = (
    ("float32", "float32"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
)
GEMM_ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 130)
GEMM_WEIGHTS = (
    (1, 1),
    (3, 5),
    (7, 33),
    (17, 64),
    (96, 576),
    (129, 131),
    (576, 192),
    (1000, 257),
    (64, 4096),
    (2048, 512),
    (1536, 576),
    (33, 2050),
    (8193, 64),
)
# An H200 as the driver describes it: what selection needs where there is none.
H200 = {
    "backend": "cuda",
    "name": "NVIDIA H200",
    "compute_capability": 90,
    "multiprocessors": 132,
    "l2_bytes": 60 << 20,
    "shared_memory_per_block": 227 << 10,
    "memory_bytes": 141 << 30,
    "memory_bandwidth": 4.8e12,
}
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class AttentionCase:
    """One call of FdppAttention.

    ``lengths`` holds each row's tokens once the ``query_length`` new ones are appended. ``cache`` says where past lies:
    "in_place" (one buffer with present, of ``capacity`` slots), "grown" (a buffer of just the past tokens, present
    larger), "copied" (a buffer of its own with present's capacity) or "none". ``prompt``: total length == query_length.
    """

    lengths: tuple[int, ...]
    query_length: int
    kv_heads: int
    group: int
    head_size: int
    dtype: str
    cache_dtype: str
    cache: str = "in_place"
    prompt: bool = False
    packed: bool = False
    rotary: str = "none"
    window: int = -1
    softcap: float = 0.0
    sink: bool = False
    scale: float = 0.0
    softmax_mode: str = "lazy"
    spare: int = 5  # cache slots beyond the longest row

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def q_heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def total_length(self) -> int:
        return self.query_length if self.prompt else max(self.lengths)

    @property
    def past_capacity(self) -> int:
        if self.cache == "none":
            return 0
        return self.total_length - self.query_length if self.cache == "grown" else self.total_length + self.spare

    @property
    def capacity(self) -> int:
        return max(self.past_capacity, self.total_length)

    @property
    def rotary_dim(self) -> int:
        if self.rotary == "none":
            return 0
        return self.head_size // 16 * 8 if self.rotary == "partial" else self.head_size

    @property
    def id(self) -> str:
        marks = [
            f"n{'_'.join(map(str, self.lengths))}",
            f"s{self.query_length}",
            f"h{self.q_heads}x{self.kv_heads}",
            f"d{self.head_size}",
            _SHORT[self.dtype],
            f"c{_SHORT[self.cache_dtype]}",
            self.cache,
            self.softmax_mode,
        ]
        marks += [f"rope_{self.rotary}"] * (self.rotary != "none") + ["prompt"] * self.prompt + ["packed"] * self.packed
        marks += [f"w{self.window}"] * (self.window > 0) + ["cap"] * (self.softcap > 0) + ["sink"] * self.sink
        return "-".join(marks)

    def attributes(self) -> dict[str, object]:
        """The op's attributes, by name."""
        return {
            "num_heads": self.q_heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "softcap": self.softcap,
            "local_window_size": self.window,
            "do_rotary": int(self.rotary_dim > 0),
            "rotary_interleaved": int(self.rotary == "interleaved"),
            "rotary_embedding_dim": self.rotary_dim if self.rotary == "partial" else 0,
            "softmax_mode": self.softmax_mode,
        }


@dataclass(frozen=True)
class GemmCase:
    """One call of FdppFlatGemm: Y [M, N] = A [M, K] · B [N, K]ᵀ (+ bias [N]) (+ residual [M, N])."""

    m: int
    n: int
    k: int
    dtype: str
    weight_dtype: str
    bias: bool = False
    residual: bool = False

    @property
    def id(self) -> str:
        marks = [f"m{self.m}", f"n{self.n}", f"k{self.k}", _SHORT[self.dtype], f"w{_SHORT[self.weight_dtype]}"]
        return "-".join(marks + ["bias"] * self.bias + ["residual"] * self.residual)

    def attributes(self) -> dict[str, object]:
        """The op's attributes, by name."""
        return {"N": self.n, "K": self.k, "weight_format": _SHORT[self.weight_dtype]}


def _attention(
    step: int, types: tuple[str, str], context: int, query_length: int, prompt: bool = False
) -> AttentionCase:
    """The case of one step of the cycles; `context` is the longest row's length."""
    small = context <= 500 and query_length < 500
    rows = 1 + step % (3 if small else 2)
    lengths = tuple(max(1 if prompt else query_length, context // divisor) for divisor in (1, 2, 7)[:rows])
    caches = ("none", "in_place") if prompt else CACHES
    return AttentionCase(
        lengths=lengths,
        query_length=query_length,
        kv_heads=2 if small else 1,
        group=GROUPS[step % len(GROUPS)],
        head_size=HEAD_SIZES[step % len(HEAD_SIZES)],
        dtype=types[0],
        cache_dtype=types[0] if prompt and caches[step // 2 % 2] == "none" else types[1],
        cache=caches[step // 2 % len(caches)],
        prompt=prompt,
        packed=step // 3 % 2 == 1,
        rotary=ROTARY[(step + step // 4) % len(ROTARY)],
        window=(-1, -1, 5, -1, 100)[step % 5],
        softcap=20.0 if step % 7 == 3 else 0.0,
        sink=step % 4 == 1,
        scale=0.25 if step % 11 == 4 else 0.0,
        softmax_mode=SOFTMAX_MODES[step % 2],
    )


def _attention_cases() -> list[AttentionCase]:
    cases = []
    for offset, types in enumerate(ATTENTION_TYPES):
        step = 17 * offset
        for context in CONTEXTS:
            cases.append(_attention(step, types, context, 1, prompt=context == 1))
            step += 1
        for query_length in NEW_TOKENS[1:]:
            for past in (1, 16, 300):
                cases.append(_attention(step, types, query_length + past, query_length))
                step += 1
        for query_length in NEW_TOKENS[1:]:
            for _ in range(2):
                cases.append(_attention(step, types, query_length, query_length, prompt=True))
                step += 5
    return list(dict.fromkeys(cases))


def _gemm_cases() -> list[GemmCase]:
    cases = []
    for offset, types in enumerate(GEMM_TYPES):
        for step, m in enumerate(GEMM_ROWS + GEMM_ROWS[:10] + GEMM_ROWS[:5]):
            n, k = GEMM_WEIGHTS[(step + 5 * offset) % len(GEMM_WEIGHTS)]
            cases.append(GemmCase(m, n, k, *types, bias=step % 2 == 1, residual=step % 3 == 1))
    return list(dict.fromkeys(cases))


ATTENTION_CASES = _attention_cases()
GEMM_CASES = _gemm_cases()
