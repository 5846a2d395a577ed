"""The matrix products that are worth tuning: a model's, or those that somebody names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.folder import ModelFolder

# Element types by the op's name of them as a weight format.
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
EPILOGUES = ("plain", "added")  # nothing beyond the store; bias or residual


@dataclass(frozen=True, order=True)
class Product:
    """What a table has an entry for: Y [M, N] = A [M, K] · B [N, K]ᵀ, whatever M."""

    n: int
    k: int
    dtype: str  # of A and Y, "float16"
    weight_format: str  # "f16"
    epilogue: str = "plain"

    @property
    def title(self) -> str:
        return f"N={self.n} K={self.k} {self.weight_format}" + (" + residual" if self.epilogue == "added" else "")

    @property
    def weight_bytes(self) -> int:
        return self.n * self.k * (4 if self.weight_format == "f32" else 2)

    def problem(self, m: int) -> dict:
        """As _core.gemm_splits() takes it. The residual is the more costly of what is added."""
        shape = {"m": m, "n": self.n, "k": self.k, "dtype": self.dtype, "weight_format": self.weight_format}
        return shape | {"has_bias": False, "has_residual": self.epilogue == "added"}


def _product(backend: str, n: int, k: int, weight_format: str, epilogue: str = "plain") -> Product:
    # The types that kernels take: on the CPU weights are widened, on a GPU both sides have one type.
    dtype = "float32" if backend == "cpu" else DTYPES[weight_format]
    return Product(n, k, dtype, weight_format, epilogue)


def from_text(texts: list[str], backend: str, weight_format: str) -> list[Product]:
    """Products "N,K"; each with both epilogues."""
    products = []
    for text in texts:
        numbers = text.split(",")
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise FdppError(f"shape is {text!r}, expected N,K, two positive whole numbers")
        products += [_product(backend, *map(int, numbers), weight_format, epilogue) for epilogue in EPILOGUES]
    return list(dict.fromkeys(products))


def from_model(path: str | Path, backend: str, weight_format: str | None = None) -> list[Product]:
    """The distinct products of a model folder or .onnx file: FdppFlatGemm's, and those of MatMul with constant weights,
    which become FdppFlatGemm's on export. `weight_format` None: the weights' own. FdppError: unreadable, or none."""
    path = Path(path)
    file = ModelFolder.open(path).model_file if path.is_dir() else path
    try:
        import onnx
    except ImportError as error:
        raise FdppError(f"reading a model needs onnx ({error}); pip install onnx") from error
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:  # what the parser raises for any broken file has no common base
        raise FdppError(f"{file}: cannot be read as an ONNX model: {error}") from error
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
        elif node.domain in ("", "ai.onnx") and node.op_type == "MatMul" and node.input[1] in weights:
            weight = weights[node.input[1]]
            own, shape, added = formats.get(weight.data_type), tuple(reversed(weight.dims)), False
        else:
            continue
        chosen = weight_format or own
        if chosen in DTYPES and len(shape) == 2:
            products.append(_product(backend, *shape, chosen, EPILOGUES[added]))
    if not products:
        raise FdppError(f"{file}: no FdppFlatGemm and no MatMul with constant weights of [K, N] in it")
    return sorted(set(products))
