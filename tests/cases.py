"""The shapes that kernels are tested and benchmarked on: one table for both ops, and a GPU to plan for.

A selection rather than the full product: each axis cycles with its own period, so that pairs of values meet;
``unit/test_cases.py`` checks that each value of each axis is there for each combination of element types.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
NEW_TOKENS = (1, 2, 7, 16, 64, 513)
ROTARY = ("none", "half", "interleaved", "partial")
CACHES = ("in_place", "grown", "copied")
SOFTMAX_MODES = ("lazy", "online", "unified")
BIASES = {"none": (), "full": ("batch", "heads"), "batch": ("batch",), "heads": ("heads",), "shared": ()}
POSITIONS = ("slots", "given", "left_padded")
QUANTIZATIONS = ("per_tensor", "per_channel")
QUANTIZED = ("int8", "float8e4m3fn")
# (type of activations, type of the cache or of the weights)
ATTENTION_TYPES = (
    ("float32", "float32"),
    ("float32", "float16"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    *((activations, cache) for activations in ("float32", "float16", "bfloat16") for cache in QUANTIZED),
)
GEMM_TYPES = (
    ("float32", "float32"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float32", "int8"),
    ("float32", "float8e4m3fn"),
    ("float32", "uint8"),  # int4, two a byte
    *(
        (activations, weights)
        for activations in ("float16", "bfloat16")
        for weights in (activations, *QUANTIZED, "uint8")
    ),
)
GEMM_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "silu_mul")
GEMM_NORMS = ("", "rms", "layer")
GEMM_BLOCKS = (16, 32, 64, 128)
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
# The same without its tables: what the library estimates.
UNTUNED_H200 = H200 | {"name": "NVIDIA H200, without its tables"}
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8", "float8e4m3fn": "f8"}
_FORMATS = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int8": "int8",
    "float8e4m3fn": "fp8",
    "uint8": "int4",
}


@dataclass(frozen=True)
class AttentionCase:
    """One call of FdppAttention.

    ``lengths`` holds each row's tokens once the ``query_length`` new ones are appended. ``cache`` says where past lies:
    "in_place" (one buffer with present, of ``capacity`` slots), "grown" (a buffer of just the past tokens, present
    larger), "copied" (a buffer of its own with present's capacity) or "none". ``prompt``: total length == query_length.
    ``positions``: where rotary angles come from: slots in the cache, position_ids of any order ("given"), or
    those of rows that begin with padding, which a bias of -inf hides ("left_padded"). ``bias``: a key of BIASES, which
    says which of its first two dimensions are not 1. ``phi_range``: how far from phi unified softmax lets scores go.
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
    phi_range: float = 8.0
    norm: bool = False
    bias: str = "none"
    positions: str = "slots"
    quantization: str = "per_tensor"  # of a cache of 8 bits
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
    def quantized(self) -> bool:
        return self.cache_dtype in QUANTIZED

    @property
    def bias_shape(self) -> tuple[int, int, int, int] | None:
        if self.bias == "none":
            return None
        whole = BIASES[self.bias]
        batch, heads = self.batch if "batch" in whole else 1, self.q_heads if "heads" in whole else 1
        return batch, heads, self.query_length, self.total_length

    @property
    def id(self) -> str:
        marks = [
            f"n{'_'.join(map(str, self.lengths[:4]))}" + f"_x{self.batch}" * (self.batch > 4),
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
        marks += ["norm"] * self.norm + [f"bias_{self.bias}"] * (self.bias != "none")
        marks += [self.positions] * (self.positions != "slots") + [self.quantization] * self.quantized
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
            "phi_lower": -self.phi_range,
            "phi_upper": self.phi_range,
            "k_quant_type": self.quantization.upper() if self.quantized else "NONE",
            "v_quant_type": self.quantization.upper() if self.quantized else "NONE",
        }


@dataclass(frozen=True)
class GemmCase:
    """One call of FdppFlatGemm: Y [M, N] = act(norm(A [M, K]) · Bᵀ (+ bias)) (+ residual [M, N]).

    ``weight_dtype``: B's element type, uint8 for int4. ``norm``: of GEMM_NORMS, "" for none. ``one_scale``: all rows of
    B share one (fp8). ``row_gap``: elements of something else before each row of A.
    """

    m: int
    n: int
    k: int
    dtype: str
    weight_dtype: str
    bias: bool = False
    residual: bool = False
    activation: str = "none"
    norm: str = ""
    norm_bias: bool = False
    block_size: int = 0
    zero_points: bool = False
    one_scale: bool = False
    accuracy_level: int = 0
    row_gap: int = field(default=0, repr=False)  # tensors are drawn by the repr: where A lies does not change them

    @property
    def weight_format(self) -> str:
        return _FORMATS[self.weight_dtype]

    @property
    def weight_rows(self) -> int:
        return 2 * self.n if self.activation == "silu_mul" else self.n

    @property
    def blocks(self) -> int:
        return -(-self.k // self.block_size)

    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """The shapes of the inputs, by name; None: absent."""
        rows, columns, scales = self.weight_rows, self.k, None
        if self.weight_format == "int4":
            columns, scales = self.blocks * self.block_size // 2, (rows, self.blocks)
        elif self.weight_format in ("int8", "fp8"):
            scales = (1,) if self.one_scale else (rows,)
        return {
            "A": (self.m, self.k),
            "B": (rows, columns),
            "scales": scales,
            "zero_points": (rows, -(-self.blocks // 2)) if self.zero_points else None,
            "bias": (rows,) if self.bias else None,
            "residual": (self.m, self.n) if self.residual else None,
            "norm_weight": (self.k,) if self.norm else None,
            "norm_bias": (self.k,) if self.norm_bias else None,
        }

    @property
    def id(self) -> str:
        marks = [f"m{self.m}", f"n{self.n}", f"k{self.k}", _SHORT[self.dtype], f"w{self.weight_format}"]
        marks += [f"b{self.block_size}"] * (self.block_size > 0) + ["zero_points"] * self.zero_points
        marks += ["one_scale"] * self.one_scale + [f"accuracy{self.accuracy_level}"] * (self.accuracy_level > 0)
        marks += [f"{self.norm}_norm"] * bool(self.norm) + ["norm_bias"] * self.norm_bias
        marks += [self.activation] * (self.activation != "none")
        marks += [f"gap{self.row_gap}"] * (self.row_gap > 0)
        return "-".join(marks + ["bias"] * self.bias + ["residual"] * self.residual)

    def attributes(self) -> dict[str, object]:
        """The op's attributes, by name."""
        return {
            "N": self.n,
            "K": self.k,
            "weight_format": self.weight_format,
            "block_size": self.block_size,
            "activation": self.activation,
            **({"norm": self.norm} if self.norm else {}),
            "accuracy_level": self.accuracy_level,
        }


def _attention(
    step: int, types: tuple[str, str], context: int, query_length: int, prompt: bool = False
) -> AttentionCase:
    """The case of one step of the cycles; `context` is the longest row's length."""
    small, large = context <= 500 and query_length < 500, query_length > 500
    rows = 1 if large else 1 + step % (3 if small else 2)
    lengths = tuple(max(1 if prompt else query_length, context // divisor) for divisor in (1, 2, 7)[:rows])
    caches = (("none", "in_place"), ("grown", "in_place"))[types[1] in QUANTIZED] if prompt else CACHES
    rotary = ROTARY[(step + step // 4) % len(ROTARY)]
    return AttentionCase(
        lengths=(context, context // 3)[: 1 + step % 2] if prompt and large else lengths,
        query_length=query_length,
        kv_heads=2 if small else 1,
        group=GROUPS[step % (3 if large else len(GROUPS))],
        head_size=HEAD_SIZES[step % len(HEAD_SIZES)],
        dtype=types[0],
        cache_dtype=types[0] if prompt and caches[step // 2 % 2] == "none" else types[1],
        cache=caches[step // 2 % len(caches)],
        prompt=prompt,
        packed=step // 3 % 2 == 1,
        rotary=rotary,
        window=(-1, -1, 5, -1, 100)[step % 5],
        softcap=20.0 if step % 7 == 3 else 0.0,
        sink=step % 4 == 1,
        scale=0.25 if step % 11 == 4 else 0.0,
        softmax_mode=SOFTMAX_MODES[(step + step // 9) % len(SOFTMAX_MODES)],
        phi_range=(8.0, 1.0)[step // 5 % 2],
        norm=step % 5 == 3,
        bias=("none", "full", "none", "shared", "none", "heads", "none", "batch")[(step + step // 8) % 8],
        positions="given" if rotary != "none" and step // 4 % 3 == 1 else "slots",
        quantization=QUANTIZATIONS[step // 7 % 2],
    )


def _special_cases(types: tuple[str, str], step: int) -> list[AttentionCase]:
    """Batches that begin with padding, large batches, and a long context."""
    mode = SOFTMAX_MODES[step % 3]
    padded = AttentionCase(
        (90, 90, 90), 1, 2, 3, 64, *types, rotary="half", bias="batch", positions="left_padded", softmax_mode=mode
    )
    return [
        padded,
        replace(padded, query_length=7, cache="copied", norm=True, quantization="per_channel"),
        replace(padded, lengths=(70, 70, 70), query_length=70, prompt=True, bias="full"),
        AttentionCase(tuple(1 + 13 * b % 80 for b in range(37)), 1, 1, 6, 64, *types, rotary="half", softmax_mode=mode),
        AttentionCase(tuple(4 + 5 * b % 60 for b in range(37)), 4, 1, 2, 32, *types, quantization="per_channel"),
        AttentionCase(tuple(1 + 7 * b % 150 for b in range(512)), 1, 1, 2, 32, *types, softmax_mode=mode),
        AttentionCase((33000, 9001), 1, 1, 2 + step % 3, 32, *types, rotary="half", softmax_mode=mode),
    ]


def _common_cases(types: tuple[str, str], step: int) -> list[AttentionCase]:
    """What most models prefill: heads of 64 and 128 without a bias, prompts and chunks of them."""
    cases = []
    for i, (query_length, past) in enumerate(((64, 0), (200, 0), (513, 0), (64, 300), (130, 77), (513, 600))):
        longest = past + query_length
        case = AttentionCase(
            (longest, query_length if past else longest // 2),
            query_length,
            2,
            (1, 4, 3)[(step + i) % 3],
            (64, 128)[(step + i // 2) % 2],
            *types,
            cache=CACHES[i % 3] if past else ("none", "in_place")[i % 2],
            prompt=past == 0,
            packed=i % 2 == 0,
            rotary=ROTARY[(step + i) % 4],
            window=(-1, 100, -1)[i % 3],
            softcap=(0.0, 0.0, 30.0)[(step + i) % 3],
            sink=i % 2 == 1,
            softmax_mode=SOFTMAX_MODES[(step + i) % 3],
            norm=i % 4 == 3,
        )
        cases.append(case)
    return cases


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
        cases += _special_cases(types, offset)
        if types[0] == types[1]:
            cases += _common_cases(types, offset)
    return list(dict.fromkeys(cases))


def _gemm(step: int, types: tuple[str, str], m: int, n: int, k: int, accuracy_level: int) -> GemmCase:
    """The case of one step of the cycles."""
    int4 = types[1] == "uint8"
    norm = GEMM_NORMS[step // 5 % len(GEMM_NORMS)]
    return GemmCase(
        m,
        n,
        k,
        *types,
        bias=step % 2 == 1,
        residual=step % 3 == 1,
        activation=GEMM_ACTIVATIONS[(step + step // 6) % len(GEMM_ACTIVATIONS)],
        norm=norm,
        norm_bias=norm != "" and step % 4 < 2,
        block_size=GEMM_BLOCKS[step % len(GEMM_BLOCKS)] if int4 else 0,
        zero_points=int4 and step % 7 in (1, 2, 4),
        one_scale=types[1] == "float8e4m3fn" and step % 4 == 2,
        accuracy_level=accuracy_level,
    )


def _gemm_copy_cases(types: tuple[str, str]) -> list[GemmCase]:
    """What decides how a GPU copies rows: those of whole panels of 128 bytes, multiples of 16 bytes, and scales by the
    eight; N that is no multiple of a tile, with gates and without."""
    if types[1] != "uint8":
        return [GemmCase(4, 100, 200, *types), GemmCase(17, 72, 200, *types, activation="silu_mul", bias=True)]
    shapes = ((1, 200, 2048, 128), (5, 72, 3072, 64), (8, 100, 4096, 128), (16, 96, 2048, 32), (33, 40, 1024, 128))
    return [
        GemmCase(m, n, k, *types, block_size=size, activation=activation)
        for (m, n, k, size), activation in zip(shapes, ("none", "silu_mul", "gelu", "silu_mul", "none"), strict=True)
    ]


def _gemm_single_row_cases(types: tuple[str, str]) -> list[GemmCase]:
    """int4 and one row of A: rows of B that end within a step, zero points by the word, more tiles than run at once."""
    shapes = ((1003, 832, 32), (520, 1024, 64), (26000, 256, 32), (40, 8192, 128), (8, 32768, 128))
    return [
        GemmCase(1, n, k, *types, block_size=size, zero_points=step % 2 == 1, bias=step > 1)
        for step, (n, k, size) in enumerate(shapes)
    ]


def _gemm_few_row_cases(types: tuple[str, str]) -> list[GemmCase]:
    """int4 and up to 8 rows of A, K in whole parts of 256: rows of B that end within a tile or a step, K that takes the
    warps of several blocks, parts that those have over, more tiles than run at once."""
    shapes = (
        *((2, 37, 256, 32, "none"), (8, 1000, 4096, 32, "relu"), (5, 1036, 1024, 64, "silu_mul")),
        *((3, 520, 4608, 64, "none"), (8, 100, 11008, 128, "silu_mul"), (7, 40, 20480, 128, "none")),
        *((4, 34000, 256, 32, "none"), (5, 200, 8192, 32, "gelu")),
    )
    return [
        GemmCase(m, n, k, *types, block_size=size, activation=act, zero_points=step % 3 == 1, residual=step % 2 == 1)
        for step, (m, n, k, size, act) in enumerate(shapes)
    ]


def _gemm_strided_cases(types: tuple[str, str]) -> list[GemmCase]:
    """Rows of A that are parts of wider ones: at multiples of 16 bytes, in each of the ways that a GPU copies those,
    and elsewhere."""
    block_size = 32 if types[1] == "uint8" else 0
    shapes = ((4, 100, 256, 64), (17, 72, 256, 8), (65, 40, 200, 24), (3, 40, 192, 3), (33, 24, 96, 13))
    cases = [GemmCase(m, n, k, *types, block_size=block_size, row_gap=gap) for m, n, k, gap in shapes]
    norms = ((8, "rms", False), (11, "rms", False), (8, "layer", True), (11, "layer", True))
    cases += [
        GemmCase(9, 40, 128, *types, norm=norm, norm_bias=bias, block_size=block_size, row_gap=gap)
        for gap, norm, bias in norms
    ]
    if types == ("float32", "uint8"):
        cases += [replace(case, accuracy_level=4) for case in cases]
    return cases


def _gemm_library_cases(types: tuple[str, str]) -> list[GemmCase]:
    """What a library does not finish itself, in more rows than it is given at a time."""
    if types != ("float16", "float16"):
        return []
    return [GemmCase(130, 66000, 8, *types, activation="silu_mul", bias=True, residual=True)]


def _gemm_cases() -> list[GemmCase]:
    cases = []
    for offset, types in enumerate(GEMM_TYPES):
        for accuracy_level in (0, 4) if types[1] == "uint8" else (0,):
            for step, m in enumerate(GEMM_ROWS + GEMM_ROWS[:10] + GEMM_ROWS[:5]):
                n, k = GEMM_WEIGHTS[(step + 5 * offset) % len(GEMM_WEIGHTS)]
                cases.append(_gemm(step, types, m, n, k, accuracy_level))
        cases += _gemm_copy_cases(types) + _gemm_strided_cases(types) + _gemm_library_cases(types)
        if types[1] == "uint8":
            cases += _gemm_single_row_cases(types) + _gemm_few_row_cases(types)
    return list(dict.fromkeys(cases))


ATTENTION_CASES = _attention_cases()
GEMM_CASES = _gemm_cases()
