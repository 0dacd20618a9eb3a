#!/bin/sh
# SPDX-License-Identifier: MIT
# What the shared library exports, what the headers declare and tests/gates/symbols.txt are one list.
# The library: $1, or $DEFT_LIB, or the one in the build tree.
set -eu
LC_ALL=C
export LC_ALL
: "${top_srcdir:=$(dirname "$0")/../..}" "${top_builddir:=.}" "${NM:=nm}"
lib=${1:-${DEFT_LIB:-$top_builddir/.libs/libdeft.so}}
symbols=$top_srcdir/tests/gates/symbols.txt

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat "$top_srcdir"/include/deft/*.h | tr '\n' ' ' | sed 's/DEFT_API/\
DEFT_API/g' | sed -n 's/^DEFT_API [^(;]*[ *]\(deft_[a-z0-9_]*\)(.*/\1/p' | sort >"$work/headers"
diff "$symbols" "$work/headers" || {
    echo "FAIL: tests/gates/symbols.txt (<) and the headers (>) differ"
    exit 1
}
test -f "$lib" || { echo "SKIP: no shared library at $lib"; exit 77; }

# A is the version node, the rest are marks that a linker may add.
$NM -D --defined-only "$lib" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' |
    grep -vxE '__bss_start|_edata|_end|_init|_fini' | sort >"$work/exports"
diff "$symbols" "$work/exports" || {
    echo "FAIL: tests/gates/symbols.txt (<) and the exports of $lib (>) differ"
    exit 1
}
echo "$(wc -l <"$symbols") symbols"
