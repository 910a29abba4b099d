#!/usr/bin/env bash
# Five minutes on a GPU: `tests/gpu/visit.sh OUT WHEELS` is run.sh with the stages and tests that tell most.
#
# doctor, the self-checked convolutions and the tests marked `cuda` (newest first) in as many processes as cores; five training steps
# layer by layer; then, alone on the card, whole networks beside PyTorch's, inference and training, and where their time goes. WHEELS
# as run.sh says; numpy, astunparse and jittor's wheel are enough where the machine has PyTorch and CUDA 13.
export JEA_GPU_SECONDS=${JEA_GPU_SECONDS:-285} JEA_GPU_TOGETHER=${JEA_GPU_TOGETHER:-75}
export JEA_GPU_ALONE=${JEA_GPU_ALONE:-bench profile}
export JEA_GPU_FIRST=${JEA_GPU_FIRST:-$'test_updates\ntest_five_sgd\ntest_cudnn\ntest_transpose\ntest_double_norm\ntest_equals_the_cpu'}
exec bash "$(dirname "$0")/run.sh" "$@"
