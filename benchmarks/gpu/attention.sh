#!/usr/bin/env bash
# The attention benchmark on a GPU machine, within SECONDS. Where a candidate ends the process, or hangs, the benchmark
# starts again without it and goes on. Results are in FILE after every case.
#   attention.sh FILE SECONDS [arguments of bench_attention.py]
set -uo pipefail
file=${1:?usage: attention.sh FILE SECONDS [arguments]}
budget=${2:?usage: attention.sh FILE SECONDS [arguments]}
shift 2
bench="$(cd "$(dirname "$0")/.." && pwd)/bench_attention.py"
mkdir -p "$(dirname "$file")"
file="$(cd "$(dirname "$file")" && pwd)/$(basename "$file")"
resume=()
[ -e "$file" ] && resume=(--resume)
for _ in 1 2 3 4 5 6; do
  left=$((budget - SECONDS))
  [ "$left" -gt 30 ] || break
  python3 "$bench" --output "$file" --time-budget "$left" "${resume[@]}" "$@" && exit 0
  # No marker: it was not a candidate that ended the process.
  [ -e "$file.running" ] || exit 1
  echo "attention.sh: ended by $(cat "$file.running")" >&2
  resume=(--resume)
done
# Out of time between two starts: the summary of what is there.
[ -e "$file" ] && python3 "$bench" --output "$file" --merge "$file"
exit 1
