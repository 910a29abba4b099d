#!/usr/bin/env bash
# Stands for nvcc (which is then nvcc.real beside it): kernels that several processes ask for are compiled once.
#
# JEA_GPU_STORE is a folder for what was compiled, by the source's text and the arguments. Without it, and for all that is no kernel of
# Jittor's, it is nvcc.real. The lock on a kernel dies with the process that holds it; who has waited JEA_GPU_WAIT seconds (20) for
# another one compiles it too.
case "${JEA_GPU_STORE:+there}$1" in there*/jit/*_op.cc) ;; *) exec "$0.real" "$@" ;; esac
library=${*: -1}
kept=$JEA_GPU_STORE/$({ printf '%s\n' "$@"; cat "$1"; } | sha256sum | cut -c1-40).so
if [ ! -e "$kept" ]; then
  exec 9>"$kept.lock"
  flock -w "${JEA_GPU_WAIT:-20}" 9
fi
[ ! -e "$kept" ] || exec cp "$kept" "$library"
"$0.real" "$@" 9>&- || exit  # without the lock's descriptor: a compiler that outlives this script would hold it
cp "$library" "$kept.$$" 9>&- && mv "$kept.$$" "$kept" 9>&-
