#!/usr/bin/env bash
# A benchmark on a GPU machine, within SECONDS. Where a candidate ends the process, or hangs, the benchmark starts again
# without it and goes on. Results are in FILE after every case.
#   restarting.sh BENCHMARK FILE SECONDS [arguments of the benchmark]
set -uo pipefail
usage="usage: restarting.sh BENCHMARK FILE SECONDS [arguments]"
bench="$(cd "$(dirname "$0")/.." && pwd)/${1:?$usage}"
file=${2:?$usage}
budget=${3:?$usage}
shift 3
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
  echo "$(basename "$bench"): ended by $(cat "$file.running")" >&2
  resume=(--resume)
done
# Out of time between two starts: the summary of what is there.
[ -e "$file" ] && python3 "$bench" --output "$file" --merge "$file"
exit 1
