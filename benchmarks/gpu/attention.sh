#!/usr/bin/env bash
# The attention benchmark on a GPU machine, within SECONDS (restarting.sh says how).
#   attention.sh FILE SECONDS [arguments of bench_attention.py]
exec "$(dirname "$0")/restarting.sh" bench_attention.py "$@"
