"""fdpp-export: an ONNX language model in, a folder with the same model on our ops out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

import fdpp_ort
from fdpp_ort.errors import FdppError
from fdpp_ort.export import (
    CACHES,
    PROFILES_FILE,
    SOFTMAX_MODES,
    TARGETS,
    WEIGHTS_HELP,
    ExportError,
    ExportReport,
    Gpu,
    export_model,
    find_gpu,
    to_html,
)

# Options, whether they are on unless said otherwise, and what they do.
_REWRITES = (
    ("gated", True, "make one product of gate and up in silu(gate) * up"),
    ("packed-qkv", True, "make one product of those for queries, keys and values"),
    ("bias", True, "let products add the biases behind them"),
    ("activations", True, "let products do the activations behind them: relu, gelu, silu"),
    ("head-norms", True, "let attention do the RMS norms of query and key heads"),
    ("norms", True, "make one node of an RMS norm in standard ops, and of the residual sum ahead of it"),
    (
        "norms-into-products",
        True,
        "onnxruntime: let products do the RMS and layer norms ahead of them and the residual sums behind them",
    ),
    ("prefetch", False, "onnxruntime: tell each product which weight the next one reads, for the L2 of a GPU"),
    (
        "last-logits",
        False,
        "onnxruntime: compute the logits of each row's last token alone; they become [batch, 1, vocabulary]",
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        report = _export(options)
        report.print(console)
        print(f"wrote {options.destination}")
        if options.target == "tensorrt":
            _print_commands(options.destination)
        if options.report is not None:
            _write_report(report, options.report)
    except (ExportError, FdppError) as error:
        print(f"fdpp-export: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fdpp-export",
        description="An ONNX language model in, a folder with the same model on our ops out.",
        epilog="In parentheses: what holds where an option is not given.",
    )
    parser.add_argument("source", metavar="IN", type=Path, help="model folder or .onnx file")
    parser.add_argument("destination", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if fdpp-export wrote it")
    _add_what_is_written(parser.add_argument_group("what is written"))
    _add_rewrites(parser.add_argument_group("rewrites, each of which the report counts"))
    _add_checks(parser.add_argument_group("checks and report"))
    return parser


def _add_what_is_written(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target", choices=TARGETS, default="onnxruntime", help="runtime to export for (%(default)s)")
    group.add_argument(
        "--weights",
        metavar="FORMAT",
        default="keep",
        help=f"how the weights of products are stored: {WEIGHTS_HELP} (%(default)s)",
    )
    group.add_argument(
        "--head-weights",
        metavar="FORMAT",
        help="the same for the product that makes the logits (as --weights, but int8 beside int4)",
    )
    group.add_argument("--softmax", choices=SOFTMAX_MODES, default="lazy", help="of attention (%(default)s)")
    group.add_argument(
        "--calibrate",
        metavar="FILE",
        type=Path,
        help="run this text, or token ids (.npz), and give attentions where it is worth it the unified softmax",
    )
    group.add_argument(
        "--cache",
        choices=CACHES,
        help="onnxruntime: say in graph and genai_config.json that past and present share a buffer with room, or that "
        "they grow (as in IN)",
    )
    group.add_argument(
        "--max-length",
        metavar="TOKENS",
        type=int,
        help="tokens in a row that engines, and rotary tables that IN lacks, are made for (the context length)",
    )
    group.add_argument(
        "--max-batch", metavar="ROWS", type=int, help="tensorrt: rows at once that engines are built for (1)"
    )


def _add_rewrites(group: argparse._ArgumentGroup) -> None:
    for name, default, what in _REWRITES:
        state = "on" if default else "off"
        group.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=f"{what} ({state})"
        )


def _add_checks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run both graphs in ONNX Runtime and compare logits, caches and generated tokens (on)",
    )
    group.add_argument("--gpu", metavar="NAME|GB/s", help="whose limit of tokens/s the report states (this machine's)")
    group.add_argument(
        "--report", metavar="FILE", type=Path, help="write the report there, too: as a page to .html, otherwise as JSON"
    )


def _export(options: argparse.Namespace) -> ExportReport:
    needs_library = options.target == "onnxruntime" or options.verify or options.calibrate is not None
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done)

        return export_model(
            options.source,
            options.destination,
            target=options.target,
            weights=options.weights,
            head_weights=options.head_weights,
            softmax=options.softmax,
            verify=options.verify,
            **{name.replace("-", "_"): vars(options)[name.replace("-", "_")] for name, _, _ in _REWRITES},
            cache=options.cache,
            library=fdpp_ort.library_path() if needs_library else None,
            overwrite=options.overwrite,
            max_batch=options.max_batch,
            max_length=options.max_length,
            calibrate=options.calibrate,
            gpu=find_gpu(options.gpu) if options.gpu is not None else _own_gpu(),
            progress=show,
        )


def _own_gpu() -> Gpu | None:
    """This machine's; None where there is none, or its driver does not say how fast its memory is."""
    try:
        gpu = fdpp_ort.info()["gpu"]
    except FdppError:
        return None
    return Gpu(gpu["name"], gpu["memory_bandwidth"]) if gpu is not None and gpu["memory_bandwidth"] > 0 else None


def _print_commands(destination: Path) -> None:
    """What builds an engine of the exported graph, to be run in `destination`."""
    profiles = json.loads((destination / PROFILES_FILE).read_text(encoding="utf-8"))
    for version, command in profiles["trtexec"].items():
        print(f"\nTensorRT {version}, in {destination}:\n{command}")
    print(f"\nor:\n{profiles['polygraphy']}")


def _write_report(report: ExportReport, path: Path) -> None:
    try:
        path.write_text(to_html(report) if path.suffix == ".html" else report.to_json(), encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"{path}: cannot write the report ({error.strerror}); {report.destination} is complete"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
