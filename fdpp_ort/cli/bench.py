"""fdpp-bench: time an exported model beside the original and other runtimes, and compare what they say."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fdpp_ort.bench.candidates import KINDS, PEERS, Models
from fdpp_ort.bench.cells import list_cells
from fdpp_ort.bench.model_bench import Request, bench_model
from fdpp_ort.bench.quality import GREEDY_TOKENS, LARGEST_DIFFERENCE, compare_quality
from fdpp_ort.cli.options import positive_numbers
from fdpp_ort.errors import FdppError

PROGRAM = "fdpp-bench"
_DTYPES = ("float16", "bfloat16", "float32")
_EPILOGUE = """candidates of fdpp-bench model (one process each, in turns):
  fdpp, fdpp-graph    the exported graph in ONNX Runtime, without and with CUDA graph
  fdpp-genai          onnxruntime-genai with the exported folder
  ort, ort-graph      the original graph in ONNX Runtime
  genai               onnxruntime-genai with the original folder
  hf, compile         transformers as it is; torch.compile with a static cache (mode reduce-overhead)
  vllm                vLLM
Those of ours always run where --fdpp is given."""


def _positive(text: str) -> int:
    (number,) = positive_numbers(text)[:1]
    return number


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := sorted(set(names) - set(KINDS)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; expected some of {', '.join(PEERS)}")
    return names


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_model(commands)
    _add_quality(commands)
    options = parser.parse_args(argv)
    if options.command == "model" and options.model is None and options.fdpp is None:
        parser.error("give MODEL, --fdpp or both")
    return options


def _add_model(commands) -> None:
    model = commands.add_parser(
        "model",
        help="time decoding steps and prompts",
        description="Time decoding steps and prompts beside the peers that are installed.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = model.add_argument
    add("model", metavar="MODEL", type=Path, nargs="?", help="folder of the original, as fdpp-export takes it")
    add("--fdpp", metavar="OUT", type=Path, help="what fdpp-export made of it")
    add("--checkpoint", metavar="FOLDER", type=Path, help="transformers' config.json, weights beside it or random ones")
    add("--name", help="of the model, in the results (default: the folder's)")
    add("--peers", type=_peers, default=PEERS, metavar="NAME,...", help=f"default: {','.join(PEERS)}")
    add("--ablations", action="store_true", help="ours, too, with a technique of the paper off: fdpp-no-t1, -t2, -t3")
    add("--batch", type=positive_numbers, default=[1, 8], metavar="B,...", help="rows (default: 1,8)")
    add("--context", type=positive_numbers, default=[1024, 128], metavar="T,...", help="the most important first")
    add("--prefill", type=positive_numbers, metavar="T,...", help="tokens of prompts (default: as --context)")
    add("--new-tokens", type=_positive, default=32, metavar="N", help="steps that are timed (default: 32)")
    add("--rounds", type=_positive, default=3, metavar="N", help="turns of each candidate (default: 3)")
    add("--provider", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0: each runtime's choice")
    add("--dtype", choices=_DTYPES, help="of the checkpoint (default: float16, on a CPU float32)")
    add("--bandwidth", metavar="NAME|GB/s", help="of the memory, for the byte limit (default: by the driver)")
    add("--time-budget", type=float, metavar="SECONDS", help="leave out, and name, what does not fit into it")
    add("--resume", action="store_true", help="go on with what FILE's .measured.jsonl holds")
    add("-o", "--output", metavar="FILE", type=Path, default=Path("fdpp_bench.json"), help="results, as JSON")
    add("--plot", metavar="FILE", type=Path, help="draw the time of a step there (PNG, SVG, PDF), ablations beside it")


def _add_quality(commands) -> None:
    quality = commands.add_parser(
        "quality",
        help="compare greedy tokens and perplexity",
        description="Compare greedy tokens and the perplexity of a text. Exit status 1: a token differs, or "
        f"perplexities by more than {LARGEST_DIFFERENCE:g} of themselves.",
    )
    add = quality.add_argument
    add("original", metavar="ORIGINAL", type=Path, help="folder of the original")
    add("fdpp", metavar="FDPP", type=Path, help="what fdpp-export made of it")
    add("--text", metavar="FILE", type=Path, required=True, help="UTF-8; prompts begin its pieces, too")
    add("--tokens", type=_positive, default=GREEDY_TOKENS, metavar="N", help=f"greedy ones (default: {GREEDY_TOKENS})")
    add("--prompt-tokens", type=_positive, default=64, metavar="N")
    add("--row", type=_positive, default=1024, metavar="N", help="tokens of a piece of the text (default: 1024)")
    add("--pieces", type=_positive, default=2, metavar="N", help="of the text (default: 2)")
    add("--provider", choices=("cpu", "cuda"), default="cpu")
    add("--cuda-graph", action="store_true")
    add("-o", "--output", metavar="FILE", type=Path, help="results, as JSON")


def _request(options: argparse.Namespace) -> Request:
    for folder in (options.model, options.fdpp, options.checkpoint):
        if folder is not None and not folder.is_dir():
            raise FdppError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}")
    checkpoint = options.checkpoint or options.model
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        if options.checkpoint is not None:
            raise FdppError(f"--checkpoint {checkpoint}: it has no config.json")
        checkpoint = None
    return Request(
        name=options.name or (options.model or options.fdpp).resolve().name,
        models=Models(
            options.model,
            options.fdpp,
            checkpoint,
            dtype=options.dtype or ("float32" if options.provider == "cpu" else "float16"),
        ),
        cells=list_cells(options.batch, options.context, options.prefill or options.context),
        peers=options.peers,
        output=options.output,
        ablations=options.ablations,
        provider=options.provider,
        threads=options.threads,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        bandwidth=options.bandwidth,
        time_budget=options.time_budget,
        resume=options.resume,
    )


def run_model(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fdpp_ort.bench.plot import plot
    from fdpp_ort.bench.show import print_results
    from fdpp_ort.tuning.plot import check_plots

    if options.plot is not None:
        check_plots()
    content = bench_model(_request(options), lambda what: print(what, file=sys.stderr, flush=True))
    print_results(Console(highlight=False), content)
    print(f"wrote {options.output}")
    if options.plot is not None:
        for file in plot(options.plot, content):
            print(f"wrote {file}")
    return 0


def run_quality(options: argparse.Namespace) -> int:
    found = compare_quality(
        options.original,
        options.fdpp,
        options.text,
        new_tokens=options.tokens,
        prompt_tokens=options.prompt_tokens,
        row=options.row,
        pieces=options.pieces,
        provider=options.provider,
        cuda_graph=options.cuda_graph,
        output=options.output,
    )
    print(
        f"greedy tokens that agree, of {options.tokens}: {', '.join(map(str, found['same_tokens']))}; perplexity "
        f"{found['perplexity']['original']:.4f} and {found['perplexity']['fdpp']:.4f}, "
        f"{found['perplexity_difference']:.1e} apart"
    )
    for parting in found["partings"]:
        its, ours = parting["logits"]
        print(
            f"prompt {parting['prompt']} parts after {parting['after']} tokens: the original gives its own token "
            f"{its:g}, ours {ours:g}; numbers of that size and type are {parting['spacing']:g} apart"
        )
    return 0 if found["passed"] else 1


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parse_arguments(argv)
    try:
        return run_model(options) if options.command == "model" else run_quality(options)
    except FdppError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        more = "; the same command with --resume goes on from here" if options.command == "model" else ""
        print(f"\n{PROGRAM}: stopped{more}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
