#!/usr/bin/env bash
# The benchmark of matrix products on a GPU machine, within SECONDS (restarting.sh says how). 500 seconds are enough for
# all of it, 300 for `--parts main`.
#   gemm.sh FILE SECONDS [arguments of bench_gemm.py]
exec "$(dirname "$0")/restarting.sh" bench_gemm.py "$@"
