#!/bin/sh
# SPDX-License-Identifier: MIT
# Everything that needs a GPU: what only CUDA has (test_cuda), then the suites of the CPU backend on the
# device. Skipped where there is none. DEFT_TESTS: tests/ of the build.
#
#     sh tests/cuda.sh [sanitize]
#
# sanitize: in its place the conformance suite, reduced, under the four tools of compute-sanitizer.
set -eu
dir=${DEFT_TESTS:-${top_builddir:-.}/tests}
test -x "$dir/unit/test_cuda" || dir=$(dirname "$0")

# CUDA does not survive a fork.
CK_FORK=no
if test "${1:-}" = sanitize; then
    DEFT_TEST_DEVICE=cuda DEFT_TEST_SCALE=${DEFT_TEST_SCALE:-0.004}
    export CK_FORK DEFT_TEST_DEVICE DEFT_TEST_SCALE
    for tool in memcheck racecheck initcheck synccheck; do
        compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 "$dir/unit/test_attention"
    done
    exit 0
fi
status=0
"$dir/unit/test_cuda" || status=$?
test "$status" = 0 || exit "$status"
"$dir/unit/test_cuda" lost
DEFT_TEST_DEVICE=cuda
export CK_FORK DEFT_TEST_DEVICE
for suite in test_attention test_attention_properties test_batch_invariance; do
    "$dir/unit/$suite"
done
# The engine, where it was built with cuBLAS; its model, where there is one.
if test -x "$dir/engine/test_candidates_cuda"; then
    "$dir/engine/test_candidates_cuda"
    test -z "${DEFT_TEST_MODEL:-}" || "$dir/engine/test_engine"
fi
