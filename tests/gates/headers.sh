#!/bin/sh
# SPDX-License-Identifier: MIT
# Each public header compiles alone, and twice, as C99 and as C++11 without a warning; so does a program
# that starts every structure from its _INIT.
set -eu
LC_ALL=C
export LC_ALL
: "${top_srcdir:=$(dirname "$0")/../..}" "${top_builddir:=.}" "${CC:=cc}" "${CXX:=g++}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
n=0

compile() { # name file compiler flags...
    name=$1 file=$2
    shift 2
    n=$((n + 1))
    "$@" -Wall -Wextra -Wshadow -Werror -I"$top_srcdir/include" -I"$top_builddir/include" -fsyntax-only "$file" ||
        { echo "FAIL: $name: $*"; failed=1; }
}

try() { # header language compiler flags...
    header=$1 language=$2
    shift 2
    printf '#include <%s>\n#include <%s>\ntypedef int translation_unit_is_not_empty;\n' \
        "$header" "$header" >"$work/header.$language"
    compile "$header" "$work/header.$language" "$@" -pedantic
}

command -v "${CXX%% *}" >/dev/null || { echo "note: no C++ compiler ($CXX), C only"; CXX=; }
for file in deft.h deft/context.h deft/cuda.h deft/export.h deft/status.h deft/step.h deft/threads.h deft/tree.h deft/version.h; do
    # CC and CXX may hold options.
    # shellcheck disable=SC2086
    try "$file" c $CC -std=c99
    # shellcheck disable=SC2086
    test -z "$CXX" || try "$file" cc $CXX -std=c++11
done
for file in "$top_srcdir"/include/deft/*.h; do
    test "$(basename "$file")" != cuda.h || continue # for those who ask for it
    grep -q "deft/$(basename "$file")\"" "$top_srcdir/include/deft.h" ||
        { echo "FAIL: deft.h does not include $(basename "$file")"; failed=1; }
done

# Every structure with a struct_size has an _INIT, and each _INIT starts one: in C, in C++ and as a
# value that is assigned.
cat "$top_srcdir"/include/deft/*.h | awk '
    /^typedef struct deft_[a-z_]*_t \{/ { type = $3; sized = 0 }
    /^    size_t struct_size;/ { sized = 1 }
    /^} deft_[a-z_]*_t;/ { if (sized) print type; sized = 0 }' | sort >"$work/sized"
cat "$top_srcdir"/include/deft/*.h | sed -n 's/^#define \(DEFT_[A-Z_]*\)_INIT\>.*/\1/p' |
    tr '[:upper:]' '[:lower:]' | sed 's/$/_t/' | sort >"$work/inits"
sort -u "$work/inits" | comm -23 "$work/sized" - >"$work/missing"
test ! -s "$work/missing" || { cat "$work/missing"; echo "FAIL: structures without an _INIT"; failed=1; }
{
    printf '#include <deft.h>\n#include <deft/cuda.h>\nint use(void);\nint use(void)\n{\n    size_t n = 0;\n'
    while read -r type; do
        init=$(echo "${type%_t}" | tr '[:lower:]' '[:upper:]')_INIT
        printf '    { %s s = %s; %s next = s; const %s *p = &next; n += p != NULL; (void)s; }\n' \
            "$type" "$init" "$type" "$type"
    done <"$work/inits"
    printf '    return (int)n;\n}\n'
} >"$work/inits.c"
cp "$work/inits.c" "$work/inits.cc"
# shellcheck disable=SC2086
compile "_INIT in C99" "$work/inits.c" $CC -std=c99 -pedantic
# shellcheck disable=SC2086
test -z "$CXX" || for std in c++11 c++17 c++20; do
    compile "_INIT in C++" "$work/inits.cc" $CXX -std=$std -pedantic
done

echo "$n compiles, $(wc -l <"$work/inits") structures with an _INIT"
exit $failed
