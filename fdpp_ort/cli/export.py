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
    parser = argparse.ArgumentParser(prog="fdpp-export", description=__doc__)
    parser.add_argument("source", metavar="IN", type=Path, help="model folder or .onnx file")
    parser.add_argument("destination", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--target", choices=TARGETS, default="onnxruntime", help="runtime to export for")
    parser.add_argument(
        "--weights",
        metavar="FORMAT",
        default="keep",
        help=f"how the weights of products are stored: {WEIGHTS_HELP}; keep (default): as in IN",
    )
    parser.add_argument(
        "--head-weights",
        metavar="FORMAT",
        help="the same for the product that makes the logits (default: as --weights, int8 beside int4)",
    )
    parser.add_argument("--softmax", choices=SOFTMAX_MODES, default="lazy", help="softmax_mode of FdppAttention")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the logits of both graphs in ONNX Runtime",
    )
    parser.add_argument(
        "--gated",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make one product of gate and up in silu(gate) * up",
    )
    parser.add_argument(
        "--packed-qkv",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make one product of those for queries, keys and values",
    )
    parser.add_argument(
        "--norms-into-products",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="onnxruntime: let products do the RMS norms ahead of them and the residual sums behind them",
    )
    parser.add_argument(
        "--prefetch",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="onnxruntime: tell each product which weight the next one reads, for a GPU to prefetch it into the L2",
    )
    parser.add_argument(
        "--last-logits",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="onnxruntime: compute the logits of each row's last token alone; they become [batch, 1, vocabulary]",
    )
    parser.add_argument(
        "--cache",
        choices=CACHES,
        help="onnxruntime: say in graph and genai_config.json that past and present share a buffer with room, or that "
        "they grow (default: as in IN)",
    )
    parser.add_argument(
        "--max-batch", metavar="ROWS", type=int, help="tensorrt: rows at once that engines are built for (default 1)"
    )
    parser.add_argument(
        "--max-length",
        metavar="TOKENS",
        type=int,
        help="tokens in a row that engines and rotary tables that IN lacks are made for (default: the context length)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        type=Path,
        help="run this text, or token ids (.npz), and give layers where it is worth it the unified softmax and its phi",
    )
    parser.add_argument(
        "--gpu", metavar="NAME|GB/s", help="whose tokens/s limit the report states (default: this machine's)"
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        help="write the report there, too, as JSON or, for FILE.html, as a page",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if fdpp-export wrote it")
    return parser


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
            gated=options.gated,
            packed_qkv=options.packed_qkv,
            norms_into_products=options.norms_into_products,
            prefetch=options.prefetch,
            last_logits=options.last_logits,
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
