#!/bin/sh
# SPDX-License-Identifier: MIT
# The paper's claims on a GPU: searches decoded end to end, against baselines in the same engine.
#
#     sh tests/paper/paper.sh TRACES OUT [PART]...
#
# TRACES: the folder with sorting128.trace, docmerge.trace, APPS_tree_size32.spec and _size64.spec of the
# paper's data set. OUT gets one line of JSON a run (results.json), the time of every eighth step of one search
# (curve.txt) and the machine (machine.txt). PART: fewshot, drafts, sorting, docmerge, traces8b, scaling,
# twice; all of them if none is named, about 20 minutes on an H200. Then, where gnuplot is:
#
#     python3 tests/paper/report.py OUT        tables (results.md) and plots (SVG and PNG)
set -eu
test $# -ge 2 || { sed -n '3,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
traces=$1 out=$2
shift 2
test $# -gt 0 || set -- fewshot drafts sorting docmerge traces8b scaling twice
bench=${DEFT_BENCH:-tests/bench/deft_bench}
mkdir -p "$out"

replay() {
    echo "$*" >&2
    "$bench" replay "$@" | grep '^{' >> "$out/results.json" || echo "FAILED" >&2
}

# The paper's few-shot shape: a prompt of 4,000 tokens, 10 to 50 leaves of 400.
fewshot() {
    for model in llama2-7b llama3-8b; do
        for leaves in 8 10 20 50; do
            replay --geometry $model --leaves $leaves --tokens 400 --prompt 4000 --name "few-shot $leaves" \
                --mode auto --mode sequence --mode copies --mode unfused
        done
        replay --geometry $model --leaves 20 --tokens 200 --prompt 4000 --name "splits" \
            --mode auto --mode node --mode node-chunk --mode flatten --mode sequence
    done
    replay --geometry llama3-70b --leaves 20 --tokens 100 --prompt 4000 --name "few-shot 20" --mode auto
}

drafts() {
    for model in llama2-7b llama3-8b; do
        for size in 32 64; do
            for prompt in 1000 4000; do
                replay --geometry $model --spec "$traces/APPS_tree_size$size.spec" --prompt $prompt --steps 100 \
                    --name "drafts of $size, prompt $prompt" --mode auto --mode sequence --mode unfused
            done
        done
    done
}

# Whole trees, drawn by a seed, no step left out; the first of them by unfused attention too.
sorting() { trace sorting sorting128 --curve "$out/curve.txt"; }
docmerge() { trace docmerge docmerge; }
trace() {
    name=$1 file=$2
    shift 2
    replay --geometry llama2-7b --trace "$traces/$file.trace" --trees 3 --name "$name" \
        --mode auto --mode sequence --mode copies "$@"
    replay --geometry llama2-7b --trace "$traces/$file.trace" --trees 1 --name "$name, 1 tree" \
        --mode auto --mode unfused
}

traces8b() {
    for file in sorting128 docmerge; do
        replay --geometry llama3-8b --trace "$traces/$file.trace" --trees 1 --name "${file%128}, 1 tree" \
            --mode auto --mode sequence --mode copies --mode unfused
    done
}

scaling() {
    for leaves in 1 4 16 64 256 1024; do
        replay --geometry llama3-8b --leaves $leaves --tokens 32 --prompt 4000 --name "scaling $leaves 4000" \
            --mode auto --mode sequence
    done
    for prompt in 1000 16000 64000; do
        replay --geometry llama3-8b --leaves 20 --tokens 32 --prompt $prompt --name "scaling 20 $prompt" \
            --mode auto --mode sequence
    done
}

# Two processes: the same time, and the same candidates to the bit.
twice() {
    for run in first second; do
        replay --geometry llama2-7b --leaves 20 --tokens 200 --prompt 4000 --name "twice $run"
    done
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv,noheader > "$out/machine.txt"
date -u +%Y-%m-%d >> "$out/machine.txt"
for part in "$@"; do
    "$part"
done
