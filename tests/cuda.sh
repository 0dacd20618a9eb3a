#!/bin/sh
# SPDX-License-Identifier: MIT
# Everything that needs a GPU: what only CUDA has (check_cuda), then the suites of the CPU backend on the
# device. Skipped where there is none. DEFT_TESTS: the folder of the test programs.
#
#     sh tests/cuda.sh [sanitize]
#
# sanitize: in its place the conformance suite, reduced, under the four tools of compute-sanitizer.
set -eu
dir=${DEFT_TESTS:-${top_builddir:-.}/tests}
test -x "$dir/check_cuda" || dir=$(dirname "$0")

# CUDA does not survive a fork.
CK_FORK=no
if test "${1:-}" = sanitize; then
    DEFT_TEST_DEVICE=cuda DEFT_TEST_SCALE=${DEFT_TEST_SCALE:-0.004}
    export CK_FORK DEFT_TEST_DEVICE DEFT_TEST_SCALE
    for tool in memcheck racecheck initcheck synccheck; do
        compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 "$dir/check_attn"
    done
    exit 0
fi
status=0
"$dir/check_cuda" || status=$?
test "$status" = 0 || exit "$status"
"$dir/check_cuda" lost
DEFT_TEST_DEVICE=cuda
export CK_FORK DEFT_TEST_DEVICE
for suite in check_attn check_props check_invariant; do
    "$dir/$suite"
done
# The engine, where it was built with cuBLAS; its model, where there is one.
if test -x "$dir/check_kernels"; then
    "$dir/check_kernels"
    test -z "${DEFT_TEST_MODEL:-}" || "$dir/check_engine"
fi
