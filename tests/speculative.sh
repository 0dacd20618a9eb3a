#!/bin/sh
# SPDX-License-Identifier: MIT
# By hand: is the text of speculative decoding that of plain decoding, and how long do both take? A hundred
# prompts, greedy.
#
#     sh tests/speculative.sh BUILD MODEL [OPTION]...
#
# BUILD: where the examples were built (./examples). OPTIONs are for the program: --device cuda, --tokens 64.
# Prints the prompts whose texts part (there two logits are within rounding of each other), and totals.
set -eu
test $# -ge 2 || { sed -n '3,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$1/speculative model=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A prompt a line.
for subject in "the sea" "a bicycle" "bread" "the moon" "a library" "rain" "chess" "a volcano" "honey" "the number seven"; do
    cat <<END
What is $subject?
Write a short poem about $subject.
Repeat after me, three times: I have seen $subject before.
List five facts about $subject as a numbered list.
Explain $subject to a child.
Translate to French: I like $subject.
Write a Python function that prints "$subject" ten times.
Continue: Once upon a time there was $subject, and
Is $subject older than a hundred years? Answer yes or no and say why.
Write the sentence "$subject is here, $subject is there" and then the same backwards.
END
done >"$work/prompts"

text() { sed '/^[0-9][0-9]* tokens/,$d' "$1"; }
parted=0
: >"$work/totals"
while read -r prompt; do
    for draft in 0 16; do
        "$program" -m "$model" -p "$prompt" --draft $draft "$@" >"$work/$draft" 2>/dev/null </dev/null
        awk -v draft=$draft '/^[0-9]+ tokens/ { n = $1; for (i = 1; i <= NF; i++) if ($i == "in") steps = $(i + 1) }
            /^text / { rate = $2 } END { print draft, n, steps, n / rate }' "$work/$draft" >>"$work/totals"
        text "$work/$draft" >"$work/text$draft"
    done
    cmp -s "$work/text0" "$work/text16" || { parted=$((parted + 1)); echo "parted: $prompt"; }
done <"$work/prompts"
awk -v parted=$parted '{ n[$1] += $2; steps[$1] += $3; seconds[$1] += $4; runs++ }
    END {
        printf "%d prompts, %d texts part\n", runs / 2, parted
        printf "plain:  %d tokens, %d steps, %.1f s\n", n[0], steps[0], seconds[0]
        printf "drafts: %d tokens, %d steps (%.2f tokens each), %.1f s: %.2f times as fast\n", n[16], steps[16],
            n[16] / steps[16], seconds[16], seconds[0] / seconds[16]
    }' "$work/totals"
test $parted = 0
