#!/usr/bin/env bash
# All that must be seen on a GPU, in one command, on a bare machine without a package index:
#
#     tests/gpu/run.sh OUT [WHEELS]
#
# WHEELS is a folder of carried packages, made where there is an index with the machine's version of Python:
#     pip download --no-deps --no-build-isolation -d WHEELS jittor==1.3.11.0 astunparse six tqdm wheel setuptools \
#         packaging numpy==1.26.4 pillow pyyaml pytest iniconfig pluggy pygments onednn-{cpu,devel-cpu}-gomp==2022.2.1
# and, where the machine has no CUDA 13 with cuDNN 9, the packages of the extra cuda13 (jea/environment/cuda_home.py, PACKAGES).
# Without it the environment must be complete.
# Stages: install, info, doctor, operators, models (tests), curves, bench. Each has a time limit and is skipped when OUT says that it is done,
# so that the same command goes on after an interruption. OUT/log.txt is the log, OUT/report.json the result.
# JEA_GPU_DEVICE=cpu runs the same without a GPU, JEA_GPU_STAGES="doctor bench" only those.
set -uo pipefail
out=${1:?usage: tests/gpu/run.sh OUT [WHEELS]}
wheels=${2:-}
device=${JEA_GPU_DEVICE:-cuda}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
[ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd)
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python3}
export JITTOR_HOME=${JITTOR_HOME:-$out/home} HOME=$out/home JEA_HOME=${JEA_HOME:-$out/home/jea} PYTHONUNBUFFERED=1
mkdir -p "$HOME"
if [ -n "$wheels" ] && [ -x "$out/venv/bin/python" ]; then python=$out/venv/bin/python; fi

run_stage() {  # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  case " ${JEA_GPU_STAGES:-$name} " in *" $name "*) ;; *) return 0 ;; esac
  if [ -e "$out/$name.done" ]; then echo "gpu: $name: done before"; return 0; fi
  local started=$SECONDS status
  echo "gpu: $name (at most $limit s)"
  timeout -k 10 "$limit" "$@" 2>&1 | tee -a "$out/log.txt"
  status=${PIPESTATUS[0]}
  echo "{\"stage\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - started))}" >"$out/$name.stage.json"
  echo "gpu: $name: status $status, $((SECONDS - started)) s" | tee -a "$out/log.txt"
  [ "$status" -ne 0 ] || touch "$out/$name.done"
  return "$status"
}

install() {
  "$python" -m venv --system-site-packages "$out/venv" || return
  local own=$out/venv/bin/python
  "$own" -m pip install -q --no-index --no-deps "$wheels"/*.whl || return
  for sdist in "$wheels"/*.tar.gz; do
    [ ! -e "$sdist" ] || "$own" -m pip install -q --no-index --no-deps --no-build-isolation "$sdist" || return
  done
  "$own" -m pip install -q --no-index --no-deps --no-build-isolation -e .
}

failed=0
if [ -n "$wheels" ]; then
  export -f install
  export python out wheels
  run_stage install 120 bash -c install || exit 1  # nothing works without it
  python=$out/venv/bin/python
fi
run_stage info 60 "$python" -m jea info || failed=1
run_stage doctor 300 "$python" -m jea doctor --device "$device" || failed=1
run_stage operators 300 "$python" -m pytest -m cuda tests/ops || failed=1
run_stage models 420 "$python" -m pytest -m cuda tests --ignore=tests/ops || failed=1
run_stage curves 180 "$python" tests/gpu/curves.py "$out/curves" --device "$device" --steps "${JEA_GPU_STEPS:-50}" || failed=1
run_stage bench 300 "$python" tests/gpu/bench.py --json "$out/bench.json" --device "$device" \
  --size "${JEA_GPU_SIZE:-513}" --runs "${JEA_GPU_RUNS:-20}" || failed=1

"$python" - "$out" <<'PY'
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
stages = sorted(out.glob("*.stage.json"), key=lambda path: path.stat().st_mtime)
report = {"stages": [json.loads(path.read_text()) for path in stages]}
for name, path in (("bench", out / "bench.json"), ("curves", out / "curves" / "curves.json")):
    if path.exists():
        report[name] = json.loads(path.read_text())
(out / "report.json").write_text(json.dumps(report, indent=1))
PY
echo "gpu: report in $out/report.json, log in $out/log.txt"
exit $failed
