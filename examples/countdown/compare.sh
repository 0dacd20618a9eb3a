#!/bin/sh
# SPDX-License-Identifier: MIT
# Ways to spend one model on Countdown, against each other: solve rate by tokens and by time, on problems
# that it was not trained on.
#
#     sh examples/countdown/compare.sh BUILD MODEL OUT [OPTION]...
#
# BUILD: where tot, mcts and countdown/generate were built (./examples). OUT gets problems.txt, results.txt
# (method, setting, solved, of, tokens, seconds) and, where gnuplot is, solved.svg and solved.png. OPTIONs
# are for the programs: --device cuda, --threads 2. The last two lines are one search twice for the same
# time, by tree attention and by a sequence for each leaf. Where gnuplot is on another machine:
#
#     sh examples/countdown/compare.sh plot OUT
set -eu
test $# -ge 3 || test "${1:-}" = plot || { sed -n '3,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
plot() {
    for form in svg png; do
        gnuplot <<END
set terminal $(test $form = svg && echo 'svg size 1100,450 font "sans,14"' || echo 'pngcairo size 1100,450 font "sans,11"')
set output "$out/solved.$form"
set multiplot layout 1,2
set logscale x
set ylabel "solved, %"
set yrange [0:100]
set key bottom right
set grid
lines(m) = "< grep '^" . m . " ' $out/results.txt"
set xlabel "tokens a problem"
plot for [m in "greedy best-of-n beam bfs dfs mcts"] lines(m) using (\$5/\$4):(100.0*\$3/\$4) with linespoints linewidth 2 title m
set xlabel "milliseconds a problem"
plot for [m in "greedy best-of-n beam bfs dfs mcts"] lines(m) using (1000*\$6/\$4):(100.0*\$3/\$4) with linespoints linewidth 2 title m
END
    done
}
if test "$1" = plot; then
    out=$2
    plot
    exit
fi

build=$1 model=$2 out=$3
shift 3
mkdir -p "$out"
"$build/countdown/generate" test 11 "${PROBLEMS:-500}" >"$out/problems.txt"
: >"$out/results.txt"

# method setting program argument...
measure() {
    method=$1 setting=$2 program=$3
    shift 3
    "$build/$program" -m "$model" -p "@$out/problems.txt" --jobs 64 "$@" >"$out/last.txt"
    awk -v what="$method $setting" '
        /^solved / { solved = $2; of = $4 }
        /^computed / { tokens = $2 }
        /^speed / { for (i = 1; i <= NF; i++) if ($i == "s;") seconds = $(i - 1) }
        END { print what, solved, of, tokens, seconds }' "$out/last.txt" | tee -a "$out/results.txt"
}

measure greedy 1 tot --method greedy "$@"
for n in 2 4 8 16 32 64; do
    measure best-of-n $n tot --method best-of-n --samples $n "$@"
done
for n in 2 5 10 20 40; do
    measure beam $n tot --method beam --beams $n --samples 8 "$@"
    measure bfs $n tot --method bfs --beams $n --samples 8 "$@"
done
for n in 20 60 200 600 2000; do
    measure dfs $n tot --method dfs --samples 4 --visits $n "$@"
done
for n in 4 8 16 32 64 128; do
    measure mcts $n mcts --samples 4 --explore 0.5 --simulations $n "$@"
done
# half of the time that the last search took
seconds=$(awk 'END { print $6 / 2 }' "$out/results.txt")
for split in auto sequence; do
    measure $split 128 mcts --samples 4 --explore 0.5 --simulations 128 --split $split --seconds "$seconds" "$@"
done

rm -f "$out/last.txt"
! command -v gnuplot >/dev/null || plot
