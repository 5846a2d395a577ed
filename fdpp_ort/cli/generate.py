"""fdpp-generate: continue a prompt with a model folder, through plain ONNX Runtime."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.files import write_json
from fdpp_ort.generation.decoder import Decoder
from fdpp_ort.generation.folder import ModelFolder
from fdpp_ort.generation.loop import Generation, generate
from fdpp_ort.generation.memory import peak_memory_bytes
from fdpp_ort.generation.model import PROVIDERS, Model, load_model
from fdpp_ort.generation.sampling import Sampler
from fdpp_ort.generation.text import TextCodec

PROGRAM = "fdpp-generate"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(": ")[2])
    parser.add_argument("model", metavar="MODEL", help="model folder, as onnxruntime-genai or fdpp-export write it")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("-f", "--file", metavar="FILE", help="file that holds the prompt (UTF-8)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--provider", choices=PROVIDERS, default="auto")
    parser.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        help="capture the decode step once and replay it (default: on a GPU, where the model allows it)",
    )
    parser.add_argument("--capacity", type=int, metavar="N", help="tokens the KV cache holds at most (default: needed)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help="sample among the N likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among those that make up P")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--raw", action="store_true", help="do not put the prompt into the model's chat template")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0: ONNX Runtime's choice")
    parser.add_argument("--stats-json", metavar="FILE", help="write tokens, text, speed and memory to FILE")
    parser.add_argument("--tokens", action="store_true", help="print token ids instead of text")
    return parser.parse_args(argv)


def read_prompt(arguments: argparse.Namespace) -> str:
    if arguments.file is None:
        return arguments.prompt
    try:
        return Path(arguments.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FdppError(f"{arguments.file}: the prompt cannot be read: {error}") from error


def choose_capacity(folder: ModelFolder, requested: int | None, prompt_tokens: int, max_new_tokens: int) -> int:
    """Tokens the cache must hold. The last new token is never fed back. FdppError: the prompt does not fit."""
    limit = folder.context_length
    capacity = requested if requested is not None else prompt_tokens + max_new_tokens
    if requested is None and limit is not None:
        capacity = min(capacity, limit)
    if prompt_tokens > capacity:
        what = "context length" if requested is None else "capacity"
        raise FdppError(f"the prompt has {prompt_tokens} tokens, more than the {what} of {capacity}")
    return capacity


def open_decoder(folder: ModelFolder, capacity: int, prompt_tokens: int, arguments: argparse.Namespace) -> Decoder:
    """Ready for a prompt; without a CUDA graph where that was neither asked for nor works, which is then said."""

    def ready(cuda_graph: bool | None) -> Decoder:
        decoder = Decoder(load_model(folder, arguments.provider, cuda_graph, arguments.threads), 1, capacity)
        decoder.warm_up(prompt_tokens)
        return decoder

    if arguments.cuda_graph is not None:
        return ready(arguments.cuda_graph)
    try:
        return ready(None)
    except FdppError as error:
        reason = str(error)  # no more of it: it holds what was loaded
    decoder = ready(False)
    print(f"{PROGRAM}: without a CUDA graph: {reason}", file=sys.stderr)
    return decoder


def write_statistics(path: str, model: Model, generation: Generation, text: str, load_seconds: float) -> None:
    import onnxruntime

    statistics = generation.statistics
    content = {
        "model": str(model.folder.path),
        "device": model.device,
        "cuda_graph": model.cuda_graph,
        "onnxruntime": onnxruntime.__version__,
        "load_seconds": load_seconds,
        "prompt_tokens": statistics.prompt_tokens,
        "tokens": generation.tokens[0],
        "text": text,
        "finish_reason": generation.finish_reason,
        "prefill_seconds": statistics.prefill_seconds,
        "prefill_tokens_per_second": statistics.prefill_tokens_per_second,
        "decode_steps": statistics.decode_steps,
        "decode_seconds": statistics.decode_seconds,
        "decode_tokens_per_second": statistics.decode_tokens_per_second,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(Path(path), content, "the statistics")


def run(arguments: argparse.Namespace) -> None:
    prompt = read_prompt(arguments)
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    folder = ModelFolder.open(arguments.model)
    codec = TextCodec(folder.path)
    prompt_tokens = codec.encode_prompt(prompt, arguments.raw)
    if not prompt_tokens:
        raise FdppError("the prompt is empty")
    capacity = choose_capacity(folder, arguments.capacity, len(prompt_tokens), arguments.max_new_tokens)

    start = time.perf_counter()
    decoder = open_decoder(folder, capacity, len(prompt_tokens), arguments)
    model = decoder.model
    load_seconds = time.perf_counter() - start

    next_text = codec.stream()

    def show(_: int, token: int) -> None:
        print(f"{token} " if arguments.tokens else next_text(token), end="", flush=True)

    generation = generate(decoder, [prompt_tokens], arguments.max_new_tokens, sampler, folder.eos_ids, show)
    print()
    statistics = generation.statistics
    decode = statistics.decode_tokens_per_second
    print(
        f"[{model.device}: loaded in {load_seconds:.1f} s; prompt {statistics.prompt_tokens} tokens, "
        f"{statistics.prefill_tokens_per_second:.1f} tokens/s; {len(generation.tokens[0])} new tokens, "
        f"{'-' if decode is None else f'{decode:.1f}'} tokens/s; ended by {generation.finish_reason}]",
        file=sys.stderr,
    )
    if arguments.stats_json is not None:
        write_statistics(arguments.stats_json, model, generation, codec.decode(generation.tokens[0]), load_seconds)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except FdppError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
