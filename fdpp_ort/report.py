"""What this installation consists of and what it can use on this machine."""

from __future__ import annotations

from typing import Any

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core, import_onnxruntime, library_path, tensorrt_library_path


def _onnxruntime() -> dict[str, Any]:
    try:
        onnxruntime = import_onnxruntime()
    except FdppError as error:
        return {"version": None, "providers": [], "error": str(error)}
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers(), "error": None}


def _gpu(native) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return native.gpu_device(0), None
    except RuntimeError as error:  # no driver, no device, or a build without GPU kernels
        return None, str(error)


def _tensorrt_library() -> str | None:
    try:
        return tensorrt_library_path()
    except FdppError:
        return None


def info() -> dict[str, Any]:
    """version, library, tensorrt_library (None: built without), onnxruntime {version, providers, error},
    gpu_architectures (compiled), cpu, gpu (None without one), gpu_absent (why there is none), variants [{op, name,
    backend, summary}]. FdppError: the library does not load.
    """
    import fdpp_ort

    native = core()
    gpu, gpu_absent = _gpu(native)
    return {
        "version": fdpp_ort.__version__,
        "library": library_path(),
        "tensorrt_library": _tensorrt_library(),
        "onnxruntime": _onnxruntime(),
        "gpu_architectures": native.gpu_architectures(),
        "cpu": native.cpu_device(),
        "gpu": gpu,
        "gpu_absent": gpu_absent,
        "variants": native.variants(),
    }
