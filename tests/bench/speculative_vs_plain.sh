#!/bin/sh
# SPDX-License-Identifier: MIT
# By hand: is the text of speculative decoding that of plain decoding, and how long do both take? A hundred
# prompts, greedy.
#
#     sh tests/bench/speculative_vs_plain.sh BUILD MODEL [OPTION]...
#
# BUILD: where the examples were built (./examples). OPTIONs are for the program: --device cuda, --tokens 64.
# Prints the prompts whose texts part (on a GPU, where two logits are within rounding of each other:
# test_engine shows by how much), and totals.
set -eu
test $# -ge 2 || { sed -n '3,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$1/speculative model=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

prompts=$(dirname "$0")/../data/prompts.txt
totals() { # tokens steps seconds
    awk '/^[0-9]+ tokens/ { n = $1; for (i = 1; i <= NF; i++) if ($i == "in") steps = $(i + 1) } /^text / { rate = $2 }
        END { print n, steps, n / rate }' "$1"
}
for draft in 0 16; do
    "$program" -m "$model" -p "@$prompts" --draft $draft "$@" >"$work/$draft" </dev/null
    # the text of each prompt, on one line behind it
    awk 'NR == FNR { prompt["> " $0]; next } /^[0-9]+ tokens.* in [0-9]+ steps/ { exit }
        $0 in prompt && FNR > 1 { print line; line = "" } { line = line $0 "\\n" } END { print line }' \
        "$prompts" "$work/$draft" >"$work/texts$draft"
done
test "$(wc -l <"$work/texts0")" = "$(wc -l <"$work/texts16")"
parted=0
while read -r plain <&3 && read -r drafts <&4; do
    test "$plain" = "$drafts" || { parted=$((parted + 1)); printf 'parted: %s\n        %s\n' "$plain" "$drafts"; }
done 3<"$work/texts0" 4<"$work/texts16"
{ totals "$work/0"; totals "$work/16"; } | awk -v parted=$parted -v prompts="$(wc -l <"$work/texts0")" '
    { n[NR] = $1; steps[NR] = $2; seconds[NR] = $3 }
    END {
        printf "%d prompts, %d texts part\n", prompts, parted
        printf "plain:  %d tokens, %d steps, %.1f s\n", n[1], steps[1], seconds[1]
        printf "drafts: %d tokens, %d steps (%.2f tokens each), %.1f s: %.2f times as fast\n", n[2], steps[2], n[2] / steps[2],
            seconds[2], seconds[1] / seconds[2]
    }'
test $parted = 0
