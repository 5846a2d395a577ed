"""fdpp-info: what this installation consists of and what it can use on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import fdpp_ort

PROGRAM = "fdpp-info"


def describe_cpu(cpu: dict[str, Any]) -> str:
    return f"{cpu['name']}, {cpu['isa']}, {cpu['threads']} threads"


def describe_gpu(gpu: dict[str, Any] | None, absent: str | None) -> str:
    if gpu is None:
        return f"none: {absent}"
    capability = gpu["compute_capability"]
    return (
        f"{gpu['name']}, compute capability {capability // 10}.{capability % 10}, "
        f"{gpu['multiprocessors']} multiprocessors, {gpu['memory_bytes'] / 2**30:.0f} GiB"
    )


def describe_onnxruntime(runtime: dict[str, Any]) -> str:
    return runtime["error"] or f"{runtime['version']} ({', '.join(runtime['providers'])})"


def print_tables(report: dict[str, Any]) -> None:
    import rich.box
    import rich.console
    import rich.markup
    import rich.table

    console = rich.console.Console()
    facts = rich.table.Table(box=None, show_header=False)
    for name, value in (
        ("fdpp_ort", report["version"]),
        ("library", report["library"]),
        ("TensorRT plugins", report["tensorrt_library"] or "none (built without TensorRT's headers, or without nvcc)"),
        ("onnxruntime", describe_onnxruntime(report["onnxruntime"])),
        ("CPU", describe_cpu(report["cpu"])),
        ("GPU", describe_gpu(report["gpu"], report["gpu_absent"])),
        ("compiled for GPUs", report["gpu_architectures"] or "none (built without nvcc: the CPU half alone)"),
    ):
        facts.add_row(name, rich.markup.escape(value))
    console.print(facts)
    variants = rich.table.Table("op", "variant", "backend", "what it is", box=rich.box.SIMPLE)
    for variant in report["variants"]:
        variants.add_row(*(rich.markup.escape(variant[key]) for key in ("op", "name", "backend", "summary")))
    console.print(variants)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(": ")[2])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args(argv)
    try:
        report = fdpp_ort.info()
    except fdpp_ort.FdppError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_tables(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
