"""The op library that ONNX Runtime loads."""

from __future__ import annotations

from pathlib import Path

from fdpp_ort.elf import why_not_loadable

from ..errors import ExportError


def checked_library(library: Path | None) -> Path:
    """`library`, if this machine can load it; raises ExportError otherwise."""
    if library is None:
        raise ExportError("target onnxruntime needs the op library; pass library=fdpp_ort.library_path()")
    try:
        reason = why_not_loadable(library)
    except OSError as error:
        raise ExportError(f"{library}: cannot read the op library ({error.strerror})") from error
    if reason is not None:
        raise ExportError(f"{library}: {reason}")
    return library
