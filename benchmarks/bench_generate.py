"""A whole model, original graph against exported one: greedy tokens, decode and prefill speed, memory.

    bench_generate.py --original demo/original --fdpp demo/fdpp --fdpp-f16 demo/fdpp-f16
    bench_generate.py --original original-cuda --fdpp fdpp-cuda --provider cuda      (with and without CUDA graph)

Every round runs every candidate in turn (A B C A B C ...), each in a process of its own, which loads the model,
generates from five prompts and runs a prompt of 512 tokens. So slow drifts of the machine meet all alike, and memory is
the candidate's own. With --genai, onnxruntime-genai generates from the same folders, unchanged.

Exit status 1: a candidate failed, or must give the original's tokens and did not. The other figures are still written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import machine

from fdpp_ort.bench.quality import agreement

# Of fifteen everyday prompts, the five whose greedy path has the widest gap between its two best logits in float32 (at
# least 0.029 at every token). A float16 logit near 20 is rounded to 1/64: on a narrower path the original's tokens
# differ from its own, run with a CUDA graph, and a comparison says nothing.
PROMPTS = (
    "Explain what a database index is to a beginner.",
    "Tell me three facts about the planet Mars.",
    "Give me a recipe for a vegetable soup, step by step.",
    "List five things to check before a long bicycle trip, and say why each of them matters.",
    "Describe how bread is made, from grain to loaf.",
)
NEW_TOKENS = 128
LONG_PROMPT = 512
LONG_PROMPT_REPEATS = 3
CAPACITY = LONG_PROMPT + NEW_TOKENS
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "onnxruntime-genai-cuda", "numpy", "tokenizers")


@dataclass(frozen=True)
class Candidate:
    """One way to run the model. `exact`: it must give the greedy tokens of the first candidate, the original."""

    name: str
    folder: str
    exact: bool
    provider: str
    cuda_graph: bool = False
    threads: int = 0


# ---- in the candidate's own process ----


def measure(candidate: Candidate) -> dict:
    """Loads the model and measures it. Tokens: 128 for each prompt, ends of text ignored, so that all are compared."""
    from fdpp_ort.generation import Decoder, ModelFolder, TextCodec, generate, load_model
    from fdpp_ort.generation.memory import peak_memory_bytes

    folder = ModelFolder.open(candidate.folder)
    codec = TextCodec(folder.path)
    start = time.perf_counter()
    model = load_model(folder, candidate.provider, candidate.cuda_graph, candidate.threads)
    decoder = Decoder(model, batch=1, capacity=CAPACITY)
    load_seconds = time.perf_counter() - start

    prompts = [codec.encode_prompt(prompt, raw=False) for prompt in PROMPTS]
    generate(decoder, prompts[:1], max_new_tokens=8)  # warms up; captures the graph
    runs = [generate(decoder, [prompt], NEW_TOKENS) for prompt in prompts]
    generation_memory = peak_memory_bytes()

    text = [token for prompt in prompts for token in prompt]
    long_prompt = (text * (LONG_PROMPT // len(text) + 1))[:LONG_PROMPT]
    long_runs = [generate(decoder, [long_prompt], max_new_tokens=1) for _ in range(1 + LONG_PROMPT_REPEATS)]
    return {
        "tokens": [run.tokens[0] for run in runs],
        "texts": [codec.decode(run.tokens[0]) for run in runs],
        "load_seconds": load_seconds,
        "decode_tokens_per_second": [run.statistics.decode_tokens_per_second for run in runs],
        "prefill_512_seconds": [run.statistics.prefill_seconds for run in long_runs[1:]],
        "peak_memory_generating_bytes": generation_memory,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def measure_genai(candidate: Candidate) -> dict:
    """Greedy texts by onnxruntime-genai, with the providers that the folder's genai_config.json names."""
    import onnxruntime_genai as genai

    from fdpp_ort.generation import TextCodec

    codec = TextCodec(Path(candidate.folder))
    model = genai.Model(candidate.folder)
    tokens = []
    for prompt in PROMPTS:
        ids = codec.encode_prompt(prompt, raw=False)
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(ids) + NEW_TOKENS)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        tokens.append([int(token) for token in generator.get_sequence(0)][len(ids) :])
    return {"tokens": tokens, "texts": [codec.decode(row) for row in tokens]}


WORKERS = {"measure": measure, "genai": measure_genai}


# ---- in the process that was called ----


class WorkerError(Exception):
    """A candidate's process failed; the end of its standard error is the message."""


def run_worker(worker: str, candidate: Candidate) -> dict:
    command = [sys.executable, __file__, "--worker", worker, json.dumps(asdict(candidate))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise WorkerError(f"exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(candidate: Candidate, rounds: list[dict], original: list[dict]) -> dict:
    """Figures over all rounds. Ratios are to the original of the same round; above 1 is faster than the original."""

    def per_round(runs: list[dict], key: str) -> list[float]:
        return [statistics.median(run[key]) for run in runs]

    decode, original_decode = (per_round(runs, "decode_tokens_per_second") for runs in (rounds, original))
    prefill, original_prefill = (per_round(runs, "prefill_512_seconds") for runs in (rounds, original))
    expected = original[0]["tokens"]
    return {
        **asdict(candidate),
        "tokens_identical": all(run["tokens"] == expected for run in rounds),
        "tokens_agreeing": agreement(rounds[0]["tokens"], expected),
        "texts": rounds[0]["texts"],
        "decode_tokens_per_second": spread([value for run in rounds for value in run["decode_tokens_per_second"]]),
        "decode_ratio": spread([ours / theirs for ours, theirs in zip(decode, original_decode, strict=True)]),
        "prefill_512_seconds": spread([value for run in rounds for value in run["prefill_512_seconds"]]),
        "prefill_512_ratio": spread([theirs / ours for ours, theirs in zip(prefill, original_prefill, strict=True)]),
        "load_seconds": spread([run["load_seconds"] for run in rounds]),
        "peak_memory_generating_bytes": spread([run["peak_memory_generating_bytes"] for run in rounds]),
        "peak_memory_bytes": spread([run["peak_memory_bytes"] for run in rounds]),
    }


def measure_all(candidates: list[Candidate], rounds: int) -> tuple[list[dict], dict[str, str]]:
    """Results of the candidates that ran, and errors by name of the others. WorkerError: the original failed."""
    runs: dict[str, list[dict]] = {candidate.name: [] for candidate in candidates}
    errors: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for candidate in candidates:
            if candidate.name in errors:
                continue
            print(f"round {number} of {rounds}: {candidate.name}", file=sys.stderr, flush=True)
            try:
                runs[candidate.name].append(run_worker("measure", candidate))
            except WorkerError as error:
                if candidate is candidates[0]:
                    raise
                errors[candidate.name] = str(error)
    original = runs[candidates[0].name]
    ran = [candidate for candidate in candidates if candidate.name not in errors]
    return [summarise(candidate, runs[candidate.name], original) for candidate in ran], errors


def compare_genai(candidates: list[Candidate]) -> tuple[list[dict], dict[str, str]]:
    """The same for onnxruntime-genai. A folder that several candidates share is run once."""
    folders: dict[str, Candidate] = {}
    for candidate in candidates:
        folders.setdefault(candidate.folder, candidate)
    results: list[dict] = []
    errors: dict[str, str] = {}
    expected = None
    for candidate in folders.values():
        print(f"onnxruntime-genai: {candidate.name}", file=sys.stderr, flush=True)
        try:
            run = run_worker("genai", candidate)
        except WorkerError as error:
            if candidate is candidates[0]:
                raise
            errors[f"onnxruntime-genai, {candidate.name}"] = str(error)
            continue
        expected = expected or run["tokens"]
        results.append(
            {
                "name": candidate.name,
                "folder": candidate.folder,
                "exact": candidate.exact,
                "tokens_identical": run["tokens"] == expected,
                "tokens_agreeing": agreement(run["tokens"], expected),
                "texts": run["texts"],
            }
        )
    return results, errors


def verdict(result: dict) -> str:
    return "identical" if result["tokens_identical"] else f"agree for {result['tokens_agreeing']}"


def print_table(results: list[dict]) -> None:
    print(f"{'':24} {'decode tokens/s':>24} {'ratio':>6} {'prefill 512 ms':>24} {'ratio':>6} {'peak MB':>8}  tokens")
    for result in results:
        decode, prefill = result["decode_tokens_per_second"], result["prefill_512_seconds"]
        decode_text = f"{decode['median']:.1f} ({decode['min']:.1f}-{decode['max']:.1f})"
        prefill_text = f"{prefill['median'] * 1e3:.1f} ({prefill['min'] * 1e3:.1f}-{prefill['max'] * 1e3:.1f})"
        print(
            f"{result['name']:24} {decode_text:>24} {result['decode_ratio']['median']:6.2f} "
            f"{prefill_text:>24} {result['prefill_512_ratio']['median']:6.2f} "
            f"{result['peak_memory_bytes']['median'] / 1e6:8.0f}  {verdict(result)}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", required=True, metavar="FOLDER", help="what onnxruntime-genai's builder wrote")
    parser.add_argument("--fdpp", required=True, metavar="FOLDER", help="what fdpp-export made of it")
    parser.add_argument("--fdpp-f16", metavar="FOLDER", help="the same with --weights f16 (CPU)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: ONNX Runtime's choice")
    parser.add_argument("--genai", action="store_true", help="also generate with onnxruntime-genai")
    parser.add_argument("--output", metavar="FILE", help="write the results there, as JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def list_candidates(arguments: argparse.Namespace) -> list[Candidate]:
    common = {"provider": arguments.provider, "threads": arguments.threads}
    candidates = [
        Candidate("original", arguments.original, True, **common),
        Candidate("fdpp", arguments.fdpp, True, **common),
    ]
    if arguments.provider == "cuda":
        candidates.insert(1, Candidate("original, CUDA graph", arguments.original, True, cuda_graph=True, **common))
        candidates.append(Candidate("fdpp, CUDA graph", arguments.fdpp, True, cuda_graph=True, **common))
    if arguments.fdpp_f16 is not None:
        candidates.append(Candidate("fdpp, float16 weights", arguments.fdpp_f16, False, **common))
    return candidates


def main() -> int:
    arguments = parse_arguments()
    candidates = list_candidates(arguments)
    genai: list[dict] = []
    try:
        results, errors = measure_all(candidates, arguments.rounds)
        if arguments.genai:
            genai, genai_errors = compare_genai(candidates)
            errors |= genai_errors
    except WorkerError as error:
        print(f"bench_generate: error: the original failed: {error}", file=sys.stderr)
        return 1
    print_table(results)
    for result in genai:
        print(f"onnxruntime-genai, {result['name']}: {verdict(result)}")
    for name, error in errors.items():
        print(f"{name}: FAILED: {error}")
    if arguments.output is not None:
        report = {
            **machine.describe(PACKAGES),
            "new_tokens": NEW_TOKENS,
            "prompts": PROMPTS,
            "rounds": arguments.rounds,
            "results": results,
            "genai": genai,
            "errors": errors,
        }
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    exact = [result["tokens_identical"] for result in results + genai if result["exact"]]
    return 0 if all(exact) and not errors else 1


def main_worker(worker: str, candidate: str) -> int:
    from fdpp_ort import FdppError

    try:
        result = WORKERS[worker](Candidate(**json.loads(candidate)))
    except FdppError as error:
        print(f"bench_generate: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main_worker(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main())
