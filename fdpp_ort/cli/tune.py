"""fdpp-tune: time the matrix products of a model on this machine and write the table that says which kernel runs."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.model import TABLE_NAME
from fdpp_ort.tuning import ROWS, Measurements, Product, analyse, from_model, from_text, tune, write_table
from fdpp_ort.tuning.analysis import best_of
from fdpp_ort.tuning.plot import check_plots, plot
from fdpp_ort.tuning.products import DTYPES
from fdpp_ort.tuning.tuner import make_timer

PROGRAM = "fdpp-tune"


def _rows(text: str) -> tuple[int, ...]:
    try:
        rows = tuple(int(part) for part in text.split(","))
    except ValueError:
        rows = ()
    if not rows or min(rows) < 1:
        raise argparse.ArgumentTypeError(f"expected positive whole numbers, as 1,2,4, found {text!r}")
    return rows


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(": ")[2])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="MODEL", type=Path, help="model folder or .onnx file")
    what.add_argument("--shapes", metavar="N,K", nargs="+", help="weights by their dimensions")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="of the weights (default: the model's; f32 or, on a GPU, f16)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: PyTorch's GPU if any")
    parser.add_argument(
        "-o", "--output", metavar="TABLE", type=Path, help=f"default: {TABLE_NAME} beside the model, where it is found"
    )
    parser.add_argument("--rows", metavar="M,...", type=_rows, default=ROWS, help="the Ms to time")
    parser.add_argument("--seconds", type=float, default=0.1, help="of each configuration at each M (default: 0.1)")
    parser.add_argument(
        "--pool",
        metavar="MIB",
        type=int,
        default=0,
        help="memory that weights take turns in (default: more than the caches)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what TABLE's .measured.jsonl holds; --no-resume times all anew",
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw time over M there (PNG, SVG, PDF)")
    return parser.parse_args(argv)


def _backend(device: str) -> str:
    if device != "auto":
        return device
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _products(options: argparse.Namespace, backend: str) -> list[Product]:
    if options.model is not None:
        return from_model(options.model, backend, options.dtype)
    return from_text(options.shapes, backend, options.dtype or ("f32" if backend == "cpu" else "f16"))


def _output(options: argparse.Namespace) -> Path:
    if options.output is not None:
        return options.output
    if options.model is None:
        return Path(TABLE_NAME)
    return (options.model if options.model.is_dir() else options.model.parent) / TABLE_NAME


def _print_summary(measurements: Measurements) -> None:
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE, title=measurements.head["device"]["name"])
    for heading in ("N", "K", "weights", "epilogue", "M1", "M2", "time of the best / of the library, mean over M"):
        table.add_column(heading, justify="right")
    for product, times in measurements:
        inflection = analyse(times)
        ratios = [
            min(t.microseconds for t in row) / library.microseconds
            for row in times.values()
            if (library := best_of(row, "large"))
        ]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
        shape = (product.n, product.k, product.weights, product.epilogue, inflection.m1, inflection.m2)
        table.add_row(*map(str, shape), "-" if mean is None else f"{mean:.2f}")
    rich.console.Console().print(table)


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if options.plot is not None:
        check_plots()
    backend = _backend(options.device)
    products = _products(options, backend)
    timer = make_timer(backend, options.seconds, options.pool << 20)
    output = _output(options)
    measurements = Measurements(output.with_suffix(".measured.jsonl"), timer.device, options.resume)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tuning")
        tune(
            products,
            options.rows,
            timer,
            measurements,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    write_table(output, measurements)
    if options.plot is not None:
        plot(options.plot, measurements)
    _print_summary(measurements)
    print(f"wrote {output}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parse_arguments(argv)
    try:
        run(options)
    except FdppError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
