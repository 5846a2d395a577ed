"""The library in the registry of a real TensorRT: the one for RTX, whose networks take no plugins."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fdpp_ort

pytest.importorskip("tensorrt_rtx")

LOAD = """
import sys
import tensorrt_rtx as trt
class Logger(trt.ILogger):
    def __init__(self):
        super().__init__()
    def log(self, severity, message):
        print(f"{severity.name} {message}")
logger = Logger()
runtime = trt.Runtime(logger)
registry = trt.get_plugin_registry()
for library in sys.argv[1:]:
    registry.load_library(library)
print("creators", *sorted(f"{c.name}/{c.plugin_version}/{c.plugin_namespace}" for c in registry.all_creators))
creator = registry.get_creator("FdppFlatGemm", "1", "")
if creator is not None:
    print("made", creator.create_plugin("layer", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD))
"""


def load(*libraries: str) -> str:
    done = subprocess.run([sys.executable, "-c", LOAD, *libraries], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_library_loads(library: str) -> None:
    printed = load(library)
    assert "FdppAttention/1/ FdppFlatGemm/1/" in printed
    assert "made None" in printed and "FdppFlatGemm: field N is missing" in printed


def test_library_loads_once(library: str) -> None:
    printed = load(library, library)
    assert "plugin creator of FdppAttention exists already" in printed
    assert "FdppAttention/1/ FdppFlatGemm/1/" in printed


def test_the_other_library_by_mistake(library: str) -> None:
    printed = load(fdpp_ort.library_path())
    assert "libfdpp_ort.so is for ONNX Runtime" in printed and "give TensorRT libfdpp_trt.so" in printed
    assert "FdppFlatGemm/1/" not in printed
