#!/usr/bin/env bash
# On a GPU machine without network: installs this checkout over the kernel library that `make gpu-bundle` built elsewhere.
# Only the Python module is compiled here. Prints the folder to put on PYTHONPATH.
#   setup.sh FOLDER
set -euo pipefail
site=${1:?usage: setup.sh FOLDER}
cd "$(dirname "$0")/../.."
python3 -m pip install --quiet --no-build-isolation --no-deps --no-compile --upgrade --target "$site" . \
  -C build-dir="$site/.build" -C cmake.define.FDPP_PREBUILT="$PWD/gpu-bundle/libfdpp_ort.so" >&2
echo "$site"
