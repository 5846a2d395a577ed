"""Whether an engine gives ONNX Runtime's tokens: five prompts, 128 greedy tokens each.

    check_tensorrt.py --output FILE --programs FOLDER --library libfdpp_trt.so --original FOLDER --fdpp FOLDER

--original is a float16 graph of onnxruntime-genai's builder, --fdpp what fdpp-export made of it
(benchmarks/gpu/smollm2.sh makes both). The engine is of the same original, exported for TensorRT, and runs in a process
of its own; --programs holds build_engine and trt_generate (examples/trt_generate). Exit status 1: tokens differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import machine
from bench_generate import CAPACITY, NEW_TOKENS, PROMPTS, Candidate, measure
from common import results
from common.programs import run

from fdpp_ort.bench.quality import agreement

PACKAGES = ("onnxruntime-gpu", "numpy", "tokenizers")
BOUNDS = ("min", "opt", "max")


def build(options: argparse.Namespace) -> tuple[Path, str]:
    """The engine, of the exported graph, with profiles of prompts and of single tokens, and what was said of it."""
    from fdpp_ort.export import export_model

    exported = options.work / "exported"
    export_model(options.original, exported, target="tensorrt", max_length=CAPACITY, verify=False, overwrite=True)
    profiles = json.loads((exported / "profiles.json").read_text(encoding="utf-8"))["profiles"]
    shapes = [
        "/".join(
            ",".join(f"{name}:{'x'.join(map(str, sizes[bound]))}" for name, sizes in profile.items())
            for bound in BOUNDS
        )
        for profile in profiles.values()
    ]
    engine = options.work / "model.engine"
    done = run(options.programs / "build_engine", exported / "model.onnx", options.library, engine, *shapes)
    return engine, done.stdout.strip()


def generate(options: argparse.Namespace, engine: Path) -> tuple[list[list[int]], list[str]]:
    from fdpp_ort.generation import TextCodec

    codec = TextCodec(options.fdpp)
    tokens, said = [], []
    for prompt in PROMPTS:
        ids = " ".join(map(str, codec.encode_prompt(prompt, raw=False)))
        done = run(options.programs / "trt_generate", engine, options.library, NEW_TOKENS, given=ids)
        tokens.append([int(token) for token in done.stdout.split()])
        said.append(done.stderr.strip())
    return tokens, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE")
    add("--programs", type=Path, required=True, metavar="FOLDER", help="of build_engine and trt_generate")
    add("--library", type=Path, required=True, help="libfdpp_trt.so, for the TensorRT that the programs run with")
    add("--original", type=Path, required=True, metavar="FOLDER")
    add("--fdpp", type=Path, required=True, metavar="FOLDER")
    add("--work", type=Path, default=Path("tensorrt-check"), metavar="FOLDER", help="for the export and the engine")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    engine, built = build(options)
    tokens, said = generate(options, engine)
    session = measure(Candidate("fdpp", str(options.fdpp), True, "cuda"))
    same = agreement(tokens, session["tokens"])
    columns = zip(PROMPTS, same, tokens, session["tokens"], session["texts"], said, strict=True)
    names = ("prompt", "same_tokens", "tokens", "session_tokens", "session_text", "engine_said")
    rows = [dict(zip(names, row, strict=True)) for row in columns]
    head = {"machine": machine.describe(PACKAGES), "engine": built, "of_tokens": NEW_TOKENS}
    results.write(options.output, {**head, "rows": rows})
    print(f"same tokens before the first other one, of {NEW_TOKENS}: {same}; {said}")
    sys.exit(0 if all(count == NEW_TOKENS for count in same) else 1)


if __name__ == "__main__":
    main()
