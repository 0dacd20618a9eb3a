#!/bin/sh
# SPDX-License-Identifier: MIT
# Everything that needs a GPU: what only CUDA has (check_cuda), then the suites of the CPU backend on the
# device. Skipped where there is none. DEFT_TESTS: the folder of the test programs.
set -eu
dir=${DEFT_TESTS:-${top_builddir:-.}/tests}
test -x "$dir/check_cuda" || dir=$(dirname "$0")

status=0
"$dir/check_cuda" || status=$?
test "$status" = 0 || exit "$status"
"$dir/check_cuda" lost
# CUDA does not survive a fork.
CK_FORK=no
DEFT_TEST_DEVICE=cuda
export CK_FORK DEFT_TEST_DEVICE
for suite in check_attn check_props check_invariant; do
    "$dir/$suite"
done
