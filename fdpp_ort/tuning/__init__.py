"""Offline tuning: times the kernels of FdppFlatGemm over M, and those of FdppAttention over batch and context, and
writes the table that dispatch looks up at run time."""

from fdpp_ort.tuning.analysis import Inflection, analyse
from fdpp_ort.tuning.attention import AttentionShape, attention_from_model, attention_from_text
from fdpp_ort.tuning.measurements import Measurements
from fdpp_ort.tuning.products import Product, from_model, from_text
from fdpp_ort.tuning.table import write_table
from fdpp_ort.tuning.tuner import ROWS, tune

__all__ = [
    "ROWS",
    "AttentionShape",
    "Inflection",
    "Measurements",
    "Product",
    "analyse",
    "attention_from_model",
    "attention_from_text",
    "from_model",
    "from_text",
    "tune",
    "write_table",
]
