"""FlashDecoding++ operators for ONNX Runtime and TensorRT.

    import onnxruntime, fdpp_ort
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession("model.onnx", options)

Importing the package loads neither ONNX Runtime nor the native library.
"""

from fdpp_ort.errors import FdppError
from fdpp_ort.library import force_variant, last_plan, library_path, load_table, register, tensorrt_library_path
from fdpp_ort.report import info

__version__ = "0.1.0"
__all__ = [
    "FdppError",
    "__version__",
    "force_variant",
    "info",
    "last_plan",
    "library_path",
    "load_table",
    "register",
    "tensorrt_library_path",
]
