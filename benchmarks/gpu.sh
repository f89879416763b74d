#!/usr/bin/env bash
# The first ten minutes on a GPU, in one command: benchmarks/gpu.sh OUT [small|full]
#
# For a bare machine with one card: python3 with torch, and what else is missing as wheels in the folder $WHEELS.
# OUT gets gpu.jsonl (one line per part), gpu.log and table.md. Each step has its own limit; a step that fails or
# is stopped is named in the table, and the others go on. PYTHON: another python. SECONDS_IN_ALL: 540.
# STEPS: other steps, or another order, each with its seconds, such as "card:25 cells:200".
set -u
out=${1:?usage: benchmarks/gpu.sh OUT [small|full]}
size=${2:-full}
python=${PYTHON:-python3}
in_all=${SECONDS_IN_ALL:-540}
slower=1
[ "$size" = small ] && slower=4 in_all=$((4 * in_all)) # a CPU, and maybe a busy one
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
lines=$out/gpu.jsonl log=$out/gpu.log
: >"$lines"
: >"$log"

if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl \
    2>&1 | tee -a "$log"
  PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export HF_DATASETS_DISABLE_PROGRESS_BARS=1

step() { # step NAME SECONDS: run one step, at most so long and no longer than is left
  local name=$1 limit=$((slower * $2)) left=$((in_all - SECONDS)) rc why=
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt "${LEAST:-8}" ]; then
    printf '{"step": "%s", "part": "end", "failed": "no time was left"}\n' "$name" >>"$lines"
    return
  fi
  echo "== $name, at most $limit s, $SECONDS s since the start" | tee -a "$log"
  timeout -k 5 "$limit" "$python" -W ignore "$root/benchmarks/gpu.py" "$name" --out "$lines" --size "$size" \
    --limit "$((limit - 2))" 2>&1 | tee -a "$log"
  rc=${PIPESTATUS[0]}
  [ "$rc" -ne 0 ] && why=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr '"\\|' "'/" | LC_ALL=C tr -cd '\40-\176' | tail -c 200)
  [ "$rc" -eq 124 ] && why="stopped after $limit s; last: $why"
  printf '{"step": "%s", "part": "end", "rc": %d%s}\n' "$name" "$rc" "${why:+, \"failed\": \"$why\"}" >>"$lines"
}

if [ "$size" = full ]; then # later steps need scenes: they are drawn on the CPU meanwhile
  "$python" -W ignore "$root/benchmarks/gpu.py" draw --out "$lines" >>"$log" 2>&1 &
  drawing=$!
fi
for one in ${STEPS:-card:20 check:60 attention:20 grid:50 profile:60 decode:25 large:105 cells:75 defences:60 poison:25 optimised:40}; do
  step "${one%:*}" "${one#*:}"
done
[ -n "${drawing:-}" ] && kill "$drawing" 2>/dev/null
"$python" "$root/benchmarks/gpu.py" table --out "$lines" | tee "$out/table.md"
