#!/bin/sh
# SPDX-License-Identifier: MIT
# The manual agrees with the headers: every public function has a page, mandoc finds no fault with
# any page, what a SYNOPSIS declares stands in a header and the other way round, every status and
# every member is described, the names that a page mentions exist, and each example compiles alone.
set -eu
LC_ALL=C
export LC_ALL
: "${top_srcdir:=$(dirname "$0")/../..}" "${top_builddir:=.}" "${CC:=cc}"
man=$top_builddir/man
symbols=$top_srcdir/tests/gates/symbols.txt
command -v mandoc >/dev/null || { echo "SKIP: mandoc is not installed"; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "FAIL: $*"
    failed=1
}

# C without comments, preprocessor lines and spare blanks, on one line.
normalise() {
    awk '{ sub(/^[ \t]*#.*/, ""); text = text $0 " " }
         END {
             while ((i = index(text, "/*")) > 0) {
                 rest = substr(text, i + 2)
                 text = substr(text, 1, i - 1) " " substr(rest, index(rest, "*/") + 2)
             }
             gsub(/DEFT_API|DEFT_BEGIN_DECLS|DEFT_END_DECLS/, " ", text)
             gsub(/[ \t]+/, " ", text)
             gsub(/ ?\* ?/, "*", text); gsub(/ ?\( ?/, "(", text); gsub(/ ?\) ?/, ")", text)
             gsub(/ ?, ?/, ",", text); gsub(/ ?; ?/, ";", text)
             gsub(/ ?{ ?/, "{", text); gsub(/ ?} ?/, "}", text)
             print text
         }'
}

# One line a declaration: cut at each ; outside of braces.
declarations() {
    awk '{
        depth = 0; start = 1
        for (i = 1; i <= length($0); i++) {
            c = substr($0, i, 1)
            if (c == "{") depth++
            else if (c == "}") depth--
            else if (c == ";" && depth == 0) { print substr($0, start, i - start + 1); start = i + 1 }
        }
    }' | sed 's/^ *//'
}

# The constants that a file defines, one a line.
constants() {
    sed -n 's:/\*.*::; s/^[[:space:]]*#define[[:space:]][[:space:]]*\(DEFT_[A-Z_]*\)[[:space:]][[:space:]]*\([^[:space:]\\].*\)$/\1 \2/p' |
        sed 's/[[:space:]]*$//'
}

# Names of the members of the structures that declarations hold, one a line.
members() {
    sed -n 's/^typedef struct [a-z_]*{\(.*\)}.*/\1/p' | tr ';' '\n' |
        sed -n 's/^[^(]*(\*\([a-z_]*\)).*/\1/p; t
                s/.*[ *]\([a-z_]*\)$/\1/p' | sort -u
}

# "function status" for each status that the comment above a function names.
statuses() {
    awk '
        /^\/\*\*/ { comment = "" }
        /^\/\*\*/, /\*\// { comment = comment " " $0; next }
        /^DEFT_API/ {
            name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name)
            n = split(comment, word, /[^A-Z_]+/)
            for (i = 1; i <= n; i++) if (word[i] ~ /^DEFT_ERR_/) print name, word[i]
        }' "$@" | sort -u
}

section() { # page name
    mandoc -T ascii -O width=200 "$1" | sed "s/.$(printf '\b')//g" |
        awk -v name="$2" '/^[A-Z]/ { in_section = $0 == name; next } in_section'
}

set -- "$top_srcdir/include/deft/context.h" "$top_srcdir/include/deft/cuda.h" \
    "$top_srcdir/include/deft/status.h" "$top_srcdir/include/deft/step.h" \
    "$top_srcdir/include/deft/threads.h" "$top_srcdir/include/deft/tree.h"
: >"$work/header"
for header in "$@"; do
    normalise <"$header" >>"$work/header"
    constants <"$header" >>"$work/header.constants"
    # A prototype is what DEFT_API introduces.
    tr '\n' ' ' <"$header" | sed 's/DEFT_API/\
DEFT_API/g' | sed -n 's/^DEFT_API \([^;]*;\).*/\1/p' | while read -r line; do
        echo "$line" | normalise
    done >>"$work/prototypes"
done
tr '\n' ' ' <"$work/header" >"$work/header.line"

# Every function has a page, which names it.
while read -r name; do
    page=$man/$name.3
    test -f "$page" || { fail "$name has no page"; continue; }
    target=$(sed -n 's:^\.so man3/::p' "$page")
    page=$man/${target:-$name.3}
    test -f "$page" || { fail "$name leads to $target, which is not there"; continue; }
    section "$page" NAME | sed 's/ - .*//' | tr -s ', ' '\n' | grep -qx "$name" ||
        fail "the NAME section of $page does not list $name"
    section "$page" SYNOPSIS | grep -q "[ *]$name(" || fail "$page does not declare $name"
done <"$symbols"

# Its page says every status that the header does.
statuses "$@" | while read -r name status; do
    target=$(sed -n 's:^\.so man3/::p' "$man/$name.3")
    grep -q "^\.B.* *$status" "$man/${target:-$name.3}" || echo "$name: $status"
done >"$work/wrong"
test ! -s "$work/wrong" || { cat "$work/wrong"; fail "the pages do not say these"; }

: >"$work/synopsis"
for page in "$man"/*.[137]; do
    if grep -q '^\.so ' "$page"; then
        basename "$page" .3 | grep -qxFf - "$symbols" || fail "$page: no such function"
        continue
    fi
    mandoc -T lint -W warning "$page" >"$work/lint" 2>&1 || :
    test ! -s "$work/lint" || { cat "$work/lint"; fail "mandoc finds fault with $page"; }
    grep -q '@[A-Z]*@' "$page" && fail "$page: something was not filled in"

    section "$page" SYNOPSIS >"$work/text"
    constants <"$work/text" | while read -r line; do
        grep -qxF "$line" "$work/header.constants" || echo "$line"
    done >"$work/wrong"
    normalise <"$work/text" | declarations >"$work/declared"
    cat "$work/declared" >>"$work/synopsis"
    section "$page" DESCRIPTION >"$work/description"
    members <"$work/declared" | while read -r name; do
        grep -qw "$name" "$work/description" || echo "$name"
    done >"$work/unsaid"
    test ! -s "$work/unsaid" || { cat "$work/unsaid"; fail "$page does not describe these members"; }
    while read -r line; do
        awk -v line="$line" '{ exit index($0, line) == 0 }' "$work/header.line" || echo "$line"
    done <"$work/declared" >>"$work/wrong"
    test ! -s "$work/wrong" || { cat "$work/wrong"; fail "$page: no header says this"; }
done

sort -u "$work/prototypes" >"$work/want"
sort -u "$work/synopsis" | grep -xFf "$work/want" >"$work/have" || :
diff "$work/want" "$work/have" >"$work/diff" || { cat "$work/diff"; fail "prototypes without SYNOPSIS"; }

# Names that a page mentions.
cat "$work/header.line" "$symbols" | tr -cs 'A-Za-z0-9_' '\n' | sort -u >"$work/known"
{
    basename -a "$man"/*.[37] | sed 's/\.[37]$//'
    printf '%s\n' DEFT_DEBUG_CHECK DEFT_ISA DEFT_STATIC
    sed 's/ .*//' "$work/header.constants"
    sed -n 's/^.*#define \(DEFT_[A-Z_]*\).*/\1/p' "$@" "$top_srcdir/include/deft/version.h.in"
    sed -n 's/.*XX(\([A-Z_]*\),.*/DEFT_\1/p' "$@"
} | sort -u - "$work/known" >"$work/names"
cat "$man"/*.[37] | sed '/^\.TH/d' | tr -cs 'A-Za-z0-9_' '\n' | grep -E '^(deft_[a-z_]+|DEFT_[A-Z0-9_]+)$' |
    grep -v '_$' | sort -u | comm -23 - "$work/names" >"$work/wrong"
test ! -s "$work/wrong" || { cat "$work/wrong"; fail "the manual mentions what does not exist"; }

# Every .EX block that includes the header is a file of its own.
n_examples=0
for page in "$man"/*.[37]; do
    awk -v stem="$work/example" '
        /^\.EX/ { n++; file = stem n ".c"; text = ""; next }
        /^\.EE/ { if (text ~ /#include <deft.h>/) printf "%s", text >file; close(file); file = ""; next }
        file { gsub(/\\-/, "-"); gsub(/\\\(aq/, "\047"); gsub(/\\e/, "\\"); gsub(/\\&/, ""); text = text $0 "\n" }' \
        "$page"
    for example in "$work"/example*.c; do
        test -f "$example" || continue
        n_examples=$((n_examples + 1))
        # CC may hold options.
        # shellcheck disable=SC2086
        $CC -std=c99 -Wall -Werror -I"$top_srcdir/include" -I"$top_builddir/include" -fsyntax-only \
            "$example" || fail "$page: an example does not compile"
        cp "$example" "$work/last.c"
        rm "$example"
    done
    case $page in */deft.7) mv "$work/last.c" "$work/first.c" ;; esac
done
awk '/^```c$/ { on = 1; next } /^```$/ { if (on) exit } on' "$top_srcdir/README.md" |
    diff - "$work/first.c" >"$work/diff" || {
    cat "$work/diff"
    fail "the first programs of README.md and deft(7) differ"
}

echo "$(wc -l <"$symbols") functions, $(wc -l <"$work/synopsis") declarations, $n_examples examples"
exit $failed
