"""The native library: where it is, whether this machine can load it, and how sessions get it.

Python (fdpp_ort._core) and ONNX Runtime load one and the same file. So forced variants and the record of what ran are
shared between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fdpp_ort.elf import why_not_loadable
from fdpp_ort.errors import FdppError

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_NAME = "libfdpp_ort.so"
TENSORRT_LIBRARY_NAME = "libfdpp_trt.so"
MINIMUM_ONNXRUNTIME = (1, 20)


def library_path() -> str:
    """Absolute path of the custom-op library. FdppError: it is not there."""
    path = Path(__file__).absolute().parent / LIBRARY_NAME
    if not path.is_file():
        raise FdppError(
            f"{path}: the custom-op library is missing; install the package (pip install .) and do not run inside the "
            "source tree, whose folder fdpp_ort hides the installed package"
        )
    return str(path)


def tensorrt_library_path() -> str:
    """Absolute path of TensorRT's plugin library. FdppError: the package was built without it."""
    path = Path(library_path()).parent / TENSORRT_LIBRARY_NAME
    if not path.is_file():
        raise FdppError(
            f"{path}: the package was built without TensorRT plugins, which need nvcc and TensorRT's headers; install "
            "it again where both are (-C cmake.define.FDPP_TENSORRT=ON says what is missing)"
        )
    return str(path)


def check_file(path: str) -> None:
    """FdppError where this machine cannot load the library at `path`."""
    if (reason := why_not_loadable(path)) is not None:
        raise FdppError(f"{path}: {reason}; install the package again")


def import_onnxruntime():
    """The onnxruntime module. FdppError: not installed, or older than the library needs."""
    try:
        import onnxruntime
    except ImportError as error:
        raise FdppError(f"onnxruntime cannot be imported ({error}); install onnxruntime or onnxruntime-gpu") from error
    if version_of(onnxruntime) < MINIMUM_ONNXRUNTIME:
        needed = ".".join(map(str, MINIMUM_ONNXRUNTIME))
        raise FdppError(f"onnxruntime {onnxruntime.__version__} is too old: fdpp_ort needs {needed} or later")
    return onnxruntime


def version_of(onnxruntime) -> tuple[int, ...]:
    """Major and minor version of the module."""
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Lets sessions made with `session_options` run fdpp operators. FdppError: ONNX Runtime is too old, or the library
    is missing, damaged, for another architecture or refused by ONNX Runtime."""
    import_onnxruntime()
    path = library_path()
    check_file(path)
    try:
        session_options.register_custom_ops_library(path)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise FdppError(f"{path}: ONNX Runtime refuses the library: {error}") from error


def core():
    """The pybind11 module. FdppError: it cannot be loaded."""
    check_file(library_path())
    try:
        from fdpp_ort import _core
    except ImportError as error:
        raise FdppError(f"fdpp_ort._core cannot be loaded: {error}") from error
    return _core


def last_plan() -> list[dict]:
    """What each node ran last, in the order in which nodes were first seen, over all sessions of this process: op,
    node, variant, reason, problem, num_splits, workspace_bytes, out_of_range_rows (unified softmax: query rows of all
    calls whose scores left the interval around phi). Waits for the GPU where it counts rows. A captured GPU graph
    records at capture only, but goes on counting rows."""
    return core().last_plans()


def load_table(path: str | Path) -> None:
    """From now on the table at `path`, as fdpp-tune writes it, decides on the device that it was measured on, in all
    sessions of this process; on another device it is set aside, which standard error and last_plan() say. "" forgets
    all that were loaded so. FdppError: the table is missing or malformed, or a later version of fdpp_ort wrote it."""
    try:
        core().load_table(str(path))
    except (ValueError, NotImplementedError) as error:
        raise FdppError(str(error)) from error


def force_variant(op: str, variant: str | None) -> None:
    """From now on `op` ("FdppAttention", "FdppFlatGemm") runs `variant` wherever the variant's backend runs; a problem
    that it does not take is then an error. None or "" lifts it. ValueError: no such op or variant."""
    core().force_variant(op, variant)
