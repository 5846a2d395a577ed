"""Exporter: an ONNX language model in, the same model with the ops of domain `fdpp` out."""

from .errors import ExportError
from .exporter import SOFTMAX_MODES, TARGETS, export_model
from .gpus import Gpu, find_gpu
from .lower import CACHES, PROFILES_FILE
from .page import to_html
from .report import ExportReport
from .weight_format import WEIGHTS_HELP

__all__ = [
    "CACHES",
    "PROFILES_FILE",
    "SOFTMAX_MODES",
    "TARGETS",
    "WEIGHTS_HELP",
    "ExportError",
    "ExportReport",
    "Gpu",
    "export_model",
    "find_gpu",
    "to_html",
]
