"""The matrix products that are worth tuning: a model's, or those that somebody names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.folder import ModelFolder

# What weights are stored as, by the op's names of their formats.
DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "fp8": "float8_e4m3fn",
    "int4": "uint8",
}
QUANTISED = ("int8", "fp8", "int4")
BLOCK_SIZES = (16, 32, 64, 128)
_BLOCK_SIZE = 32  # of int4 weights that come from no model
EPILOGUES = ("plain", "added")  # nothing beyond the store; bias or residual


@dataclass(frozen=True, order=True)
class Product:
    """What a table has an entry for: Y [M, N] = A [M, K] · B [N, K]ᵀ, whatever M."""

    n: int
    k: int
    dtype: str  # of A and Y, "float16"
    weight_format: str  # "f16"
    epilogue: str = "plain"
    accuracy_level: int = 0  # 4: the CPU's kernels may round A to int8
    block_size: int = 0  # of int4

    @property
    def weights(self) -> str:
        text = self.weight_format + (f"/{self.block_size}" if self.block_size else "")
        return text + (f" accuracy {self.accuracy_level}" if self.accuracy_level else "")

    @property
    def title(self) -> str:
        return f"N={self.n} K={self.k} {self.weights}" + (" + residual" if self.epilogue == "added" else "")

    @property
    def stored_shape(self) -> tuple[int, int]:
        """B's."""
        columns = self.scales_shape[1] * self.block_size // 2 if self.block_size else self.k
        return (self.n, columns)

    @property
    def scales_shape(self) -> tuple[int, ...] | None:
        """None: the format has no scales."""
        if self.weight_format not in QUANTISED:
            return None
        return (self.n, -(-self.k // self.block_size)) if self.block_size else (self.n,)

    @property
    def attributes(self) -> dict:
        """FdppFlatGemm's."""
        return {
            "N": self.n,
            "K": self.k,
            "weight_format": self.weight_format,
            "block_size": self.block_size,
            "accuracy_level": self.accuracy_level,
        }

    def problem(self, m: int) -> dict:
        """As _core.gemm_splits() takes it. The residual is the more costly of what is added."""
        return {
            "m": m,
            "n": self.n,
            "k": self.k,
            "dtype": self.dtype,
            "weight_format": self.weight_format,
            "block_size": self.block_size,
            "accuracy_level": self.accuracy_level,
            "has_bias": False,
            "has_residual": self.epilogue == "added",
        }


def _product(
    backend: str,
    n: int,
    k: int,
    weight_format: str,
    epilogue: str,
    *,
    bfloat16: bool = False,
    block_size: int = 0,
    accuracy_level: int = 0,
) -> Product:
    """`bfloat16`: what activations of quantised weights are on a GPU, rather than float16; `block_size` and
    `accuracy_level`: a model's, of int4 weights."""
    # The types that kernels take: on the CPU weights are widened, on a GPU both sides have one type if they are floats.
    if backend == "cpu":
        dtype = "float32"
    elif weight_format in QUANTISED:
        dtype = "bfloat16" if bfloat16 else "float16"
    else:
        dtype = DTYPES[weight_format]
    if weight_format != "int4":
        return Product(n, k, dtype, weight_format, epilogue)
    # Lower levels permit nothing that kernels make use of, and a GPU's kernels round at none.
    level = 4 if accuracy_level == 4 and backend == "cpu" else 0
    return Product(n, k, dtype, weight_format, epilogue, level, block_size or _BLOCK_SIZE)


def from_text(
    texts: list[str], backend: str, weight_format: str, epilogues: Sequence[str] = EPILOGUES, block_size: int = 0
) -> list[Product]:
    """Products "N,K", each with these epilogues; `block_size`: of int4 weights, 0: 32."""
    products = []
    for text in texts:
        numbers = text.split(",")
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise FdppError(f"shape is {text!r}, expected N,K, two positive whole numbers")
        shape = [int(number) for number in numbers]
        products += [
            _product(backend, *shape, weight_format, epilogue, block_size=block_size) for epilogue in epilogues
        ]
    return list(dict.fromkeys(products))


def read_graph(path: str | Path):
    """The file of a model folder or .onnx file, and its graph without the weights. FdppError: unreadable."""
    path = Path(path)
    file = ModelFolder.open(path).model_file if path.is_dir() else path
    try:
        import onnx
    except ImportError as error:
        raise FdppError(f"reading a model needs onnx ({error}); pip install onnx") from error
    try:
        return file, onnx.load(file, load_external_data=False).graph
    except Exception as error:  # what the parser raises for any broken file has no common base
        raise FdppError(f"{file}: cannot be read as an ONNX model: {error}") from error


def from_model(path: str | Path, backend: str, weight_format: str | None = None) -> list[Product]:
    """The distinct products of a model folder or .onnx file: FdppFlatGemm's, and those of MatMul with constant weights,
    which become FdppFlatGemm's on export. `weight_format` None: the weights' own. FdppError: unreadable, or none."""
    file, graph = read_graph(path)
    import onnx

    formats = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.FLOAT16: "f16", onnx.TensorProto.BFLOAT16: "bf16"}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = []
    for node in graph.node:
        if (node.domain, node.op_type) == ("fdpp", "FdppFlatGemm"):
            values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            own = values["weight_format"].decode()
            rows = values["N"] * (2 if values.get("activation") == b"silu_mul" else 1)
            shape = (rows, values["K"])
            added = any(node.input[4:6])  # bias, residual
            scales = [weights[name].data_type for name in node.input[2:3] if name in weights]
            options = {
                "bfloat16": own == "bf16" or onnx.TensorProto.BFLOAT16 in scales,
                "block_size": values.get("block_size", 0),
                "accuracy_level": values.get("accuracy_level", 0),
            }
        elif node.domain in ("", "ai.onnx") and node.op_type == "MatMul" and node.input[1] in weights:
            weight = weights[node.input[1]]
            own, shape, added = formats.get(weight.data_type), tuple(reversed(weight.dims)), False
            options = {"bfloat16": own == "bf16"}
        else:
            continue
        chosen = weight_format or own
        if chosen in DTYPES and len(shape) == 2:
            products.append(_product(backend, *shape, chosen, EPILOGUES[added], **options))
    if not products:
        raise FdppError(f"{file}: no FdppFlatGemm and no MatMul with constant weights of [K, N] in it")
    return sorted(set(products))
