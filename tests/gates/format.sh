#!/bin/sh
# SPDX-License-Identifier: MIT
# Every source file is as clang-format 14 leaves it (.clang-format), in 100 columns; other versions break lines
# elsewhere. FILE...: those alone. To put one right: clang-format-14 -i FILE.
#
#     sh tests/gates/format.sh [FILE]...
set -eu
: "${top_srcdir:=$(dirname "$0")/../..}"

tool=
for name in ${CLANG_FORMAT:-clang-format-14 clang-format}; do
    case $("$name" --version 2>/dev/null) in
    *"version 14."*) tool=$name; break ;;
    esac
done
test -n "$tool" || { echo "SKIP: clang-format 14 is not installed"; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if test $# = 0; then
    cd "$top_srcdir"
    # a release has no list of its files
    list=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' 2>/dev/null) || list=
    test -n "$list" || list=$(find cuda examples include lib tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh')
    # names have no blanks
    # shellcheck disable=SC2086
    set -- $list
fi
test $# != 0 || { echo "FAIL: no source file in $top_srcdir"; exit 1; }

failed=0
for file; do
    # comments are not broken by the tool; columns, not bytes
    if LC_ALL=C.UTF-8 grep -nE '^.{101}' "$file" >"$work/long"; then
        failed=$((failed + 1))
        sed "s|^|FAIL: more than 100 columns: $file:|" "$work/long"
    fi
    "$tool" --style=file "$file" >"$work/want" || { failed=$((failed + 1)); continue; }
    diff -u --label "$file" --label "$file, formatted" "$file" "$work/want" >"$work/diff" && continue
    failed=$((failed + 1))
    cat "$work/diff"
    echo "FAIL: $file: $(grep -c '^-[^-]\|^-$' "$work/diff") lines"
done
echo "$# files, $failed not as $tool writes them"
test $failed = 0
