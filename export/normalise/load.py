"""Loads a graph without its weights: external tensors stay on disk until they are written."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from ..errors import ExportError


def load(path: Path) -> tuple[ir.Model, set[Path]]:
    """The graph at `path` and the resolved paths of its external data files.

    Raises ExportError for a file that is no ONNX graph and for external data that is missing or too short.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        _require_text(proto)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except Exception as error:  # protobuf and onnx_ir raise many kinds for a malformed file
        cause = str(error).strip() or type(error).__name__
        raise ExportError(f"{path}: not a readable ONNX model ({cause})") from error
    if not model.ir_version or len(model.graph) == 0:
        raise ExportError(f"{path}: not an ONNX model, or one without nodes")
    return model, _resolve_external_data(model, path)


def _require_text(message: Message) -> None:
    """Raises ValueError for a name that is not UTF-8: the parser hands it on as bytes."""
    for field, value in message.ListFields():
        repeated = not isinstance(value, (str, bytes, int, float, Message))
        for item in value if repeated else (value,):
            if isinstance(item, Message):
                _require_text(item)
            elif field.type != field.TYPE_STRING:
                break
            elif isinstance(item, bytes):
                raise ValueError(f"its {field.name} {item!r} is not UTF-8")


def _resolve_external_data(model: ir.Model, path: Path) -> set[Path]:
    files: set[Path] = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                raise ExportError(f"{path}: initializer {value.name} has no data")
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = _checked(tensor, path)
                files.add(Path(value.const_value.path))
            else:
                _require_data(tensor, path)
    return files


def _checked(tensor: ir.ExternalTensor, path: Path) -> ir.ExternalTensor:
    """`tensor` by its real path, so that folders of symbolic links (model hub caches) load; the link is the user's own.

    The location itself may not leave the model's folder: it comes from the file.
    """
    what = f"{path}: external data of {tensor.name}"
    location = Path(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise ExportError(f"{what} lies outside the model's folder: {location}")
    file = path.parent / location
    if not file.is_file():
        raise ExportError(f"{what} is missing: no file {file}")
    _require_type(tensor, what)
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise ExportError(f"{what} is {tensor.length} bytes long, expected {tensor.nbytes} for shape {tensor.shape}")
    end = (tensor.offset or 0) + tensor.nbytes
    if file.stat().st_size < end:
        raise ExportError(f"{what} is truncated: {file} has {file.stat().st_size} bytes, expected at least {end}")
    return ir.ExternalTensor(
        str(file.resolve()), tensor.offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name
    )


def _require_data(tensor: ir.TensorProtocol, path: Path) -> None:
    what = f"{path}: initializer {tensor.name}"
    if tensor.dtype == ir.DataType.STRING:
        return
    _require_type(tensor, what)
    try:
        tensor.numpy()
    except Exception as error:  # NumPy's and onnx_ir's, of many kinds
        raise ExportError(f"{what} has no data of shape {tensor.shape}: {error}") from error


def _require_type(tensor: ir.TensorProtocol, what: str) -> None:
    try:
        _ = tensor.dtype.bitwidth
    except TypeError as error:
        raise ExportError(f"{what} has the element type {tensor.dtype}, expected numbers") from error
