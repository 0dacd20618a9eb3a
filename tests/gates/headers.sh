#!/bin/sh
# SPDX-License-Identifier: MIT
# Each public header compiles alone, and twice, as C99 and as C++17 without a warning.
set -eu
: "${top_srcdir:=$(dirname "$0")/../..}" "${top_builddir:=.}" "${CC:=cc}" "${CXX:=g++}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
n=0

try() { # header language compiler flags...
    header=$1 language=$2
    shift 2
    printf '#include <%s>\n#include <%s>\ntypedef int translation_unit_is_not_empty;\n' \
        "$header" "$header" >"$work/header.$language"
    n=$((n + 1))
    "$@" -pedantic -Wall -Wextra -Werror -I"$top_srcdir/include" -I"$top_builddir/include" \
        -fsyntax-only "$work/header.$language" || { echo "FAIL: $header as $language"; failed=1; }
}

command -v "${CXX%% *}" >/dev/null || { echo "note: no C++ compiler ($CXX), C only"; CXX=; }
for file in deft.h deft/context.h deft/cuda.h deft/export.h deft/status.h deft/step.h deft/tree.h deft/version.h; do
    # CC and CXX may hold options.
    # shellcheck disable=SC2086
    try "$file" c $CC -std=c99
    # shellcheck disable=SC2086
    test -z "$CXX" || try "$file" cc $CXX -std=c++17
done
for file in "$top_srcdir"/include/deft/*.h; do
    test "$(basename "$file")" != cuda.h || continue # for those who ask for it
    grep -q "deft/$(basename "$file")\"" "$top_srcdir/include/deft.h" ||
        { echo "FAIL: deft.h does not include $(basename "$file")"; failed=1; }
done
echo "$n compiles"
exit $failed
