#!/bin/sh
# SPDX-License-Identifier: MIT
# The layers of lib/ and cuda/ (HACKING): no file includes a header of a higher layer, no files include
# each other in a circle, no two files share a name or an include guard (who includes both would get
# one), and the size of a KV element is written in lib/format/ alone.
#
# The order of layers: base < format, forest < plan < device.h < cpu, cuda < lib/*. A layer may include
# itself and what is below it; those that share a place do not know each other.
set -eu
LC_ALL=C
export LC_ALL
: "${top_srcdir:=$(dirname "$0")/../..}"
cd "${1:-$top_srcdir}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# "file line name" of each #include "..."
find lib cuda -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort >"$work/files"
xargs grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' <"$work/files" /dev/null |
    sed 's/^\([^:]*\):\([0-9]*\):[^"]*"\([^"]*\)".*/\1 \2 \3/' >"$work/includes"

# Which file an include names: beside the file that has it, or from lib/ or cuda/ (-I). Public headers,
# config.h and those of the system are no layer.
awk -v list="$work/files" '
    BEGIN { while ((getline f < list) > 0) is[f] = 1 }
    function clean(path,    n, part, i, out, m) { # a/../b is b
        n = split(path, part, "/"); m = 0
        for (i = 1; i <= n; i++) {
            if (part[i] == "..") m--
            else if (part[i] != "." && part[i] != "") out[++m] = part[i]
        }
        path = out[1]
        for (i = 2; i <= m; i++) path = path "/" out[i]
        return path
    }
    {
        dir = $1; sub(/[^\/]*$/, "", dir)
        to = ""
        if (is[clean(dir $3)]) to = clean(dir $3)
        else if (is[clean("lib/" $3)]) to = clean("lib/" $3)
        else if (is[clean("cuda/" $3)]) to = clean("cuda/" $3)
        if (to != "") print $1, $2, to
    }' "$work/includes" >"$work/edges"
test -s "$work/edges" || { echo "FAIL: no includes found"; exit 1; }

awk '
    function place(file) {
        if (file ~ /^lib\/base\//) return 1
        if (file ~ /^lib\/(format|forest)\//) return 2
        if (file ~ /^lib\/plan\//) return 3
        if (file == "lib/device.h") return 4
        if (file ~ /^(lib\/cpu|cuda)\//) return 5
        return 6
    }
    function layer(file) { sub(/[^\/]*$/, "", file); return file }
    place($3) > place($1) { print $1 ":" $2 ": includes " $3 " of a higher layer" }
    (place($1) == 4 || place($1) == 5) && $3 ~ /^lib\/forest\// && $3 != "lib/forest/move.h" {
        print $1 ":" $2 ": includes " $3 ", and a device never sees a tree"
    }
    place($3) == place($1) && place($1) != 6 && layer($3) != layer($1) {
        print $1 ":" $2 ": includes " $3 " of a layer beside it"
    }' "$work/edges" >"$work/wrong"
test ! -s "$work/wrong" || { cat "$work/wrong"; echo "FAIL: a layer knows what it should not"; failed=1; }

# Circles: take away files that include nothing that is left, until nothing changes.
awk '{
        from[NR] = $1; to[NR] = $3
    }
    END {
        do {
            changed = 0
            delete has
            for (i in from) has[from[i]] = 1
            for (i in from) if (!(to[i] in has)) { delete from[i]; delete to[i]; changed = 1 }
        } while (changed)
        for (i in from) print from[i] " includes " to[i]
    }' "$work/edges" | sort -u >"$work/wrong"
test ! -s "$work/wrong" || { cat "$work/wrong"; echo "FAIL: files include each other in a circle"; failed=1; }

# Names and guards.
sed 's|.*/||' "$work/files" | sort | uniq -d >"$work/wrong"
xargs grep -hE '^#ifndef [A-Z0-9_]+_H_?$' <"$work/files" /dev/null | sort | uniq -d >>"$work/wrong"
test ! -s "$work/wrong" || { cat "$work/wrong"; echo "FAIL: of two files"; failed=1; }

# The size of an element. What is caught, outside of comments: a choice between numbers of bytes by a
# type (DEFT_F32 ? 4 : 2, case DEFT_F16: return 2), sizeof of a type of 16 bits, and a number that is
# assigned to what is called the bytes of an element. What is not: products of a dim with a bare 2.
grep -v '^lib/format/' "$work/files" | xargs awk '
    FNR == 1 { comment = 0 }
    {
        line = $0
        gsub(/\/\*([^*]|\*[^\/])*\*\//, "", line) # comments, also those that go on
        if (comment) { if (!sub(/^.*\*\//, "", line)) next; comment = 0 }
        if (sub(/\/\*.*$/, "", line)) comment = 1
        sub(/\/\/.*$/, "", line)
    }
    line ~ /DEFT_(F32|F16|BF16)[[:space:])]*\?[[:space:]]*[248]u?[[:space:]]*:[[:space:]]*[248]/ ||
    line ~ /sizeof[[:space:](]*(uint16_t|__half|half|__nv_bfloat16|nv_bfloat16|_Float16)[[:space:])]/ ||
    line ~ /case DEFT_(F32|F16|BF16):[[:space:]]*return[[:space:]]+[248];/ ||
    line ~ /element_?(bytes|size)[[:space:]]*=[[:space:]]*[248];/ { print FILENAME ":" FNR ": " $0 }' >"$work/wrong"
test ! -s "$work/wrong" || { cat "$work/wrong"; echo "FAIL: the size of an element outside lib/format/"; failed=1; }

echo "$(wc -l <"$work/files") files, $(wc -l <"$work/edges") includes of each other"
exit $failed
