"""The walls between the rooms of the source tree, and headers that stand alone."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SOURCES = {".h", ".cuh", ".cpp", ".cu", ".inl"}
PUBLIC_HEADERS = sorted((ROOT / "plugins/include/fdpp").glob("*.h"))
RUNTIMES = r"onnx|NvInfer|torch|ATen|pybind11|Python\.h"
GPU_VENDOR = r"cuda|cublas|cub/|cooperative_groups|nv_|hip/"
OTHER_ROOMS = r"(\.\./)*(plugins/)?(ort|tensorrt|python)/"


def includes(folder: str) -> list[tuple[str, str]]:
    """(file, what it includes) for all #include lines under a folder of plugins."""
    found = []
    for path in sorted((ROOT / "plugins" / folder).rglob("*")):
        if path.suffix in SOURCES:
            for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE):
                found.append((path.relative_to(ROOT / "plugins").as_posix(), name))
    assert found, f"plugins/{folder} has no include at all: is the folder there?"
    return found


def matching(folder: str, pattern: str) -> list[tuple[str, str]]:
    return [row for row in includes(folder) if re.match(pattern, row[1])]


@pytest.mark.parametrize("folder", ["kernels", "dispatch", "include"])
def test_no_runtime_headers(folder: str) -> None:
    assert matching(folder, RUNTIMES) == []


@pytest.mark.parametrize("folder", ["kernels", "dispatch", "include"])
def test_lower_rooms_do_not_know_adapters(folder: str) -> None:
    assert matching(folder, OTHER_ROOMS) == []


def test_kernels_do_not_know_dispatch() -> None:
    assert matching("kernels", "dispatch/") == []


def test_one_file_includes_the_gpu_vendor() -> None:
    files = {
        file
        for folder in ("kernels", "dispatch", "include", "python", "ort", "tensorrt")
        for file, _ in matching(folder, GPU_VENDOR)
    }
    assert files == {"kernels/common/gpu.h"}


def test_python_module_sees_the_public_headers_alone() -> None:
    own = {path.name for path in (ROOT / "plugins/python").glob("*.h")}
    standard = r"[a-z_]+$"
    others = [
        row for row in includes("python") if not re.match(rf"pybind11/|fdpp/|{standard}", row[1]) and row[1] not in own
    ]
    assert others == []


def test_tensorrt_plugins_see_the_public_headers_alone() -> None:
    known = r"NvInferRuntime\.h$|dlfcn\.h$|fdpp/|tensorrt/|[a-z_]+$"
    assert [row for row in includes("tensorrt") if not re.match(known, row[1])] == []


def test_public_headers_include_the_standard_library_alone() -> None:
    assert [row for row in includes("include") if not re.match(r"fdpp/[a-z_]+\.h$|[a-z_]+$", row[1])] == []


@pytest.mark.parametrize("header", PUBLIC_HEADERS, ids=lambda path: path.name)
def test_public_header_compiles_alone(header: pathlib.Path) -> None:
    done = subprocess.run(
        [
            "c++",
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            "-x",
            "c++",
            f"-I{ROOT / 'plugins/include'}",
            "-include",
            str(header),
            "/dev/null",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_there_are_public_headers() -> None:
    assert len(PUBLIC_HEADERS) >= 7


def test_exporter_does_not_import_the_native_module() -> None:
    files = sorted((ROOT / "export").rglob("*.py"))
    assert files, "export/ has no Python file"
    pattern = r"^\s*(from\s+\S*_core|import\s+\S*_core|from\s+fdpp_ort\s+import\s+.*\b_core\b)"
    assert [f.name for f in files if re.search(pattern, f.read_text(), flags=re.MULTILINE)] == []
