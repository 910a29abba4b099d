#!/usr/bin/env bash
# What must be seen on a GPU, in one command, on a bare machine without a package index, within minutes:
#
#     tests/gpu/run.sh OUT [WHEELS]
#
# WHEELS is a folder of carried packages, made where there is an index, for the machine's Python (3.12 here):
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d WHEELS numpy==1.26.4 astunparse onednn-cpu-gomp==2022.2.1 \
#         onednn-devel-cpu-gomp==2022.2.1;  pip wheel --no-deps -w WHEELS jittor==1.3.11.0
# They go into the environment of $PYTHON (python3), the one that has PyTorch and NVIDIA's wheels. Without WHEELS it must be
# complete. A file core*.tar.xz in WHEELS, as an earlier run left it in OUT, brings Jittor's compiled core along; steps-cpu.npz, which
# steps.py --device cpu writes, is what the five training steps are compared with.
#
# Stages, chosen with JEA_GPU_STAGES: install core (Jittor's, compiled on all cores), together (doctor, the tests marked `cuda`, the
# kernels that `alone` will time: as many processes as cores, each with its own copy of the caches at the same path), alone (times, one
# process on the card), caches (handed back). Each result is in OUT the moment it is known: tests.jsonl, log.txt, *.json.
# JEA_GPU_SECONDS (540) bounds all of it, JEA_GPU_TOGETHER (120) the tests; what has not begun by then is left out.
# JEA_GPU_ALONE chooses among, in this order: bench (whole networks) profile bandwidth convolutions. JEA_GPU_FIRST: parts of tests' names, one a line, that come first.
set -uo pipefail
out=${1:?usage: tests/gpu/run.sh OUT [WHEELS]}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
wheels=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python3}
base=${JEA_GPU_BASE:-/tmp/jea-gpu}  # the same on every machine: Jittor's cache holds absolute paths
export HOME=$base/home JITTOR_HOME=$base/home JEA_HOME=${JEA_HOME:-$base/home/jea} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD:$PWD/tests/gpu/machine${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
export JEA_GPU_STORE=$base/store TORCHINDUCTOR_CACHE_DIR=$base/inductor TRITON_CACHE_DIR=$base/triton PYTHONWARNINGS=ignore
mkdir -p "$HOME" "$base/homes" "$JEA_GPU_STORE"
started=$SECONDS
limit=${JEA_GPU_SECONDS:-540}
cores=$(env -u OMP_NUM_THREADS nproc)

left() { echo $((limit - SECONDS + started)); }
chosen() { case " ${JEA_GPU_STAGES:-install core together alone caches} " in *" $1 "*) ;; *) return 1 ;; esac; }
say() { echo "gpu: $((SECONDS - started)) s: $*" | tee -a "$out/log.txt"; }

# own NAME SECONDS COMMAND...: with a copy of the caches of its own, at the same path. Its output: a part of log.txt at its end.
own() {
  local name=$1 seconds=$2 status begun=$SECONDS
  shift 2
  [ "$seconds" -lt "$(left)" ] || seconds=$(left)
  [ "$seconds" -gt 3 ] || { say "$name: no time left"; return; }
  [ -d "$base/homes/$name" ] || cp -a "$base/home" "$base/homes/$name"
  if unshare -m true 2>/dev/null; then
    timeout -k 5 "$seconds" unshare -m bash -c 'mount --bind "$0" "$HOME" && exec "$@"' "$base/homes/$name" "$@"
  else
    timeout -k 5 "$seconds" "$@"
  fi >"$base/$name.log" 2>&1
  status=$?
  { echo "== $name: status $status, $((SECONDS - begun)) s"; tail -n 60 "$base/$name.log" | cut -c1-2000; } >>"$out/log.txt"
  say "$name: status $status, $((SECONDS - begun)) s"
}

if chosen install && [ -n "$wheels" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir "$wheels"/*.whl 2>&1 | tail -n 5 | tee -a "$out/log.txt"
  say "installed: $("$python" -c 'import numpy, sys; print("Python", sys.version.split()[0], "numpy", numpy.__version__)')"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tee -a "$out/log.txt"
fi

if chosen core; then
  for part in ${wheels:+"$wheels"/core*.tar.xz}; do
    [ ! -e "$part" ] || tar -C "$base" -xJf "$part"
  done
  timeout "$(left)" "$python" -m jea info >>"$out/log.txt" 2>&1
  timeout "$(left)" "$python" -c 'from jea._jittor import jt; print("has_cuda", jt.has_cuda, jt.flags.cuda_archs)' 2>&1 | tail -n 3 |
    tee -a "$out/log.txt"
  for nvcc in "$JEA_HOME"/cuda/*/bin/nvcc; do  # kernels that several processes want are compiled once
    [ ! -e "$nvcc" ] || [ -e "$nvcc.real" ] || { mv "$nvcc" "$nvcc.real" && cp tests/gpu/machine/shared_nvcc.sh "$nvcc" && chmod 755 "$nvcc"; }
  done
  say "Jittor's core is there"
  chosen caches && { tar -C "$base" -cf - home | xz -T0 -3 >"$base/core.tar.xz"
    split -b 15M -d --additional-suffix=.tar.xz "$base/core.tar.xz" "$out/core"; say "core handed back: $(du -h "$base/core.tar.xz" | cut -f1)"; } &
fi

alone=${JEA_GPU_ALONE:-bench profile bandwidth convolutions}
if chosen together; then
  queue=$base/queue
  rm -rf "$queue"
  mkdir -p "$queue"
  ln -s "$out/tests.jsonl" "$queue/tests.jsonl"
  printf '%s\n' "${JEA_GPU_FIRST:-}" >"$queue/first.txt"
  seconds=${JEA_GPU_TOGETHER:-120}
  export JEA_QUEUE=$queue JEA_QUEUE_UNTIL=$(($(date +%s) + seconds))
  own doctor $((seconds + 20)) "$python" -m jea doctor --device cuda &
  carried=${wheels:+$(ls "$wheels"/steps-cpu.npz 2>/dev/null)}
  own steps $((seconds + 20)) bash -c "'$python' tests/gpu/measure/steps.py $base/steps-cuda.npz --start $base/start.npz ${carried:+--compare $carried}
    '$python' tests/gpu/measure/steps.py $base/steps-torch.npz --torch $base/start.npz --compare $base/steps-cuda.npz
    '$python' tests/gpu/measure/steps.py --deterministic $base/steps-rule.npz --compare $base/steps-cuda.npz" &
  lanes=4 sides=()  # what is timed later is compiled now, four processes at a time, the most wanted first
  for part in $alone; do
    case $part in
      bandwidth) for shard in 0 1 2 3; do sides+=("tests/gpu/measure/bandwidth.py $base/warm$shard.json --warm $shard/4"); done ;;
      convolutions) sides+=("tests/gpu/measure/convolutions.py $base/values.json --side values") ;;
      bench) while IFS= read -r side; do
          small=; case $side in *jea) small=--small ;; esac  # kernels of Jittor's know no sizes, those of inductor do
          sides+=("tests/gpu/measure/bench.py --warm $small --only '$side'")
        done < <("$python" tests/gpu/measure/bench.py --list | grep -v "torch eager") ;;
    esac
  done
  for lane in $(seq 0 $((lanes - 1))); do
    (for ((i = lane; i < ${#sides[@]}; i += lanes)); do
      rest=$((JEA_QUEUE_UNTIL + 20 - $(date +%s)))
      [ "$rest" -lt 5 ] || own "warm$i" "$rest" bash -c "exec '$python' ${sides[i]}"
    done) &
  done
  for worker in $(seq $((cores > 8 ? cores - 6 : 1))); do
    (while [ "$(date +%s)" -lt "$JEA_QUEUE_UNTIL" ]; do  # a test that ends its process: the next process goes on
      own "worker$worker" $((seconds + 20)) "$python" -m pytest -q -p shared_queue -m cuda --rootdir . tests
      [ "$(cat "$queue/next" 2>/dev/null || echo 0)" -lt "$(cat "$queue/count" 2>/dev/null || echo 100000)" ] || break
    done) &
  done
  wait
  say "tests: $(grep -c '"outcome": "passed"' "$out/tests.jsonl" 2>/dev/null) passed, $(grep -c '"outcome": "failed"' "$out/tests.jsonl") failed"
  grep '"outcome": "failed"' "$out/tests.jsonl" | cut -c1-600
  "$python" tests/gpu/machine/merge_caches.py "$base/home" "$base"/homes/* | tee -a "$out/log.txt"
fi

if chosen alone; then
  for part in $alone; do
    case $part in
      bandwidth) own alone 60 "$python" tests/gpu/measure/bandwidth.py "$out/bandwidth.json" ;;
      convolutions)
        for mode in "--dtype bfloat16 --training" "--tf32 --training" "--training" "--tf32" ""; do
          for side in torch jea; do
            own alone 50 "$python" tests/gpu/measure/convolutions.py "$base/convolutions-$side${mode//[- ]/}.json" --side $side $mode
            tail -n 1 "$base/alone.log" | cut -c1-1500 | tee -a "$out/convolutions.txt"
          done
        done ;;
      bench)  # what comes after it has its share of the time
        kept=40; [ "$alone" = bench ] || kept=$(($(left) * 4 / 10))
        own alone "$(($(left) - kept + 20))" "$python" tests/gpu/measure/bench.py --json "$out/bench.json" --seconds $(($(left) - kept)) ;;
      profile) own alone 45 "$python" tests/gpu/measure/kernels_by_time.py "$out/profile.json" ;;
    esac
  done
fi
wait
(cd "$base" && rm -f start.npz; tar -czf "$out/details.tar.gz" $(ls *.json *.npz *.log home/jea/convolutions homes/*/jea/convolutions -d 2>/dev/null))
say "end"
