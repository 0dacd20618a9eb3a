#!/bin/sh
# SPDX-License-Identifier: MIT
# Every example program, shortly, on the model that is shipped: exit codes, and that what they print is
# right. DEFT_EXAMPLE_WRAP: a command in front of each (a checker, say).
set -eu
: "${top_srcdir:=$(dirname "$0")/../..}" "${top_builddir:=.}"
bin=$top_builddir/examples
model=$top_srcdir/examples/countdown/countdown.gguf
test -x "$bin/tot" || { echo "SKIP: the engine is not built"; exit 77; }
test -f "$model" || { echo "SKIP: no model is shipped yet"; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "FAIL: $*"
    failed=1
}

# status program argument...: its output goes to $work/out
run() {
    want=$1
    shift
    got=0
    # shellcheck disable=SC2086
    ${DEFT_EXAMPLE_WRAP:-} "$bin/$@" >"$work/out" 2>"$work/err" || got=$?
    test "$got" = "$want" || { fail "$*: exit status $got, not $want"; cat "$work/err"; }
}

# Every solution printed makes the target from its numbers, by awk's arithmetic.
check_solutions() {
    awk '
        !/^[0-9]+=[0-9,]+ / { next }
        / not solved$/ { problems++; next }
        {
            problems++
            split($1, p, "=")
            n = split(p[2], have, ",")
            delete count
            for (i = 1; i <= n; i++) count[have[i]]++
            steps = split($2, step, ";") - 1
            for (i = 1; i <= steps; i++) {
                split(step[i], side, ":")
                split(side[1], half, "=")
                match(half[1], /[-+*\/]/)
                a = substr(half[1], 1, RSTART - 1); op = substr(half[1], RSTART, 1); b = substr(half[1], RSTART + 1)
                c = op == "+" ? a + b : op == "-" ? a - b : op == "*" ? a * b : a / b
                if (c != half[2] || count[a]-- < 1 || count[b]-- < 1) { print "wrong step " step[i] " in " $0; bad = 1 }
                count[c]++
            }
            if (steps != n - 1 || count[p[1]] != 1) { print "not a solution: " $0; bad = 1 }
            solved++
        }
        END { print solved + 0 " of " problems + 0 " solved"; exit bad || problems != '"$1"' || solved < '"$2"' }' "$work/out" ||
        fail "the solutions"
}

"$bin/countdown/generate" test 7 24 >"$work/problems"
run 0 tot -m "$model" --device cpu -p "@$work/problems" --jobs 8
check_solutions 24 5
run 0 tot -m "$model" --device cpu -p "@$work/problems" --jobs 24 --method dfs --visits 100
check_solutions 24 5
run 0 mcts -m "$model" --device cpu -p "@$work/problems" --jobs 24 --simulations 4
check_solutions 24 3
run 0 tot -m "$model" --device cpu -p "@$work/problems" --jobs 8 --method greedy
check_solutions 24 0
for method in best-of-n beam; do
    run 0 tot -m "$model" --device cpu -p "@$work/problems" --jobs 24 --method $method
    check_solutions 24 2
done

# A pool that is too small: what is worth least is dropped, the rest goes on.
for program in tot "tot --method dfs" "mcts --simulations 16"; do
    # shellcheck disable=SC2086
    run 0 $program -m "$model" --device cpu -p "@$work/problems" --pool 120
    check_solutions 24 1
    grep -q "positions were dropped, the worst first" "$work/err" || fail "$program: a full pool is not told of"
done
run 0 tot -m "$model" --device cpu -p "@$work/problems" --pool 40
check_solutions 24 0
grep -q "ended early" "$work/err" || fail "a pool too small for a single search is not told of"

# Budgets: they end with what they have.
run 0 mcts -m "$model" --device cpu -p "@$work/problems" --tokens 500
check_solutions 24 0
awk '/^computed/ { exit !($2 >= 500 && $2 < 1500) }' "$work/out" || fail "--tokens 500"
run 0 mcts -m "$model" --device cpu -p "97=2,3,5,7" --simulations 1000000 --seconds 0.2
check_solutions 1 0

run 0 tot -m "$model" --device cpu -p "24=4,9,10,13" --dot "$work/tree.dot"
grep -q "^digraph" "$work/tree.dot" && grep -q "penwidth=3" "$work/tree.dot" || fail "no tree for Graphviz"
if command -v dot >/dev/null; then
    run 0 mcts -m "$model" --device cpu -p "24=4,9,10,13" --dot "$work/tree.svg"
    grep -q "</svg>" "$work/tree.svg" || fail "no SVG"
fi
run 1 tot -m "$model" --device cpu -p "@$work/problems" --dot "$work/tree.dot"

# Some seconds of what is run for hours by hand: a full pool, nothing lost.
if test -x "$top_builddir/tests/engine/soak_search"; then
    # shellcheck disable=SC2086
    ${DEFT_EXAMPLE_WRAP:-} "$top_builddir/tests/engine/soak_search" "$model" 3 600 1 >"$work/out" 2>"$work/err" ||
        { fail "soak_search"; cat "$work/err"; }
    awk '!/^#/ { lines++; lost += $10 } END { exit lines < 1 || lost > 0 }' "$work/out" || fail "slots were lost"
fi

printf 'hint\n1+1\n13-9\nquit\n' >"$work/moves"
run 0 play -m "$model" --device cpu -p "24=4,9,10,13" <"$work/moves"
grep -q "that is no move" "$work/out" && grep -q "I play" "$work/out" || fail "the machine did not play"
run 1 play -m "$model" --device cpu -p "24=1,1,1,1"

run 0 speculative -m "$model" --device cpu --raw -p "24=4,9,10,13;" --tokens 24 --draft 0
head -n 1 "$work/out" >"$work/plain"
run 0 speculative -m "$model" --device cpu --raw -p "24=4,9,10,13;" --tokens 24 --draft 8
head -n 1 "$work/out" | cmp -s - "$work/plain" || fail "speculation changed the text"
printf '24=4,9,10,13;\n\n24=1,2,3,4;\n' >"$work/prompts"
run 0 speculative -m "$model" --device cpu --raw -p "@$work/prompts" --tokens 24 --draft 8
head -n 2 "$work/out" | tail -n 1 | cmp -s - "$work/plain" || fail "a prompt of a file has another text"
grep -q "^> 24=1,2,3,4;" "$work/out" || fail "the second prompt of a file is missing"
run 1 speculative -m "$model" --device cpu -p "@$work/missing"
run 0 best_of_n -m "$model" --device cpu --raw -p "24=4,9,10,13;" -n 100 --tokens 24
grep -q "^most end with [0-9]*: " "$work/out" || fail "a hundred samples end with nothing"
run 0 best_of_n -m "$model" --device cpu --raw -p "24=4,9,10,13;" -n 20 --tokens 24 --pool 100
grep -q "the worst first" "$work/err" && grep -q "^1\. mean.* 24 tokens" "$work/out" || fail "a full pool stops best_of_n"
run 0 beam_search -m "$model" --device cpu --raw -p "24=4,9,10,13;" -n 6 --tokens 24 --pool 64
grep -q "the worst first" "$work/err" && grep -q "^6\. score" "$work/out" || fail "a full pool stops beam_search"
run 0 beam_search -m "$model" --device cpu --raw -p "24=4,9,10,13;" -n 3 --tokens 12
grep -q "^3\. score" "$work/out" || fail "no third beam"

# A prefix cache: what is found is not computed again, and changes no answer.
cached() { # status option...: what it printed without the figures goes to $work/answers
    want=$1
    shift
    run "$want" prefix_cache -m "$model" --device cpu --tokens 24 "$@"
    sed '/^\[/d; /^requests /,$d' "$work/out" >"$work/answers"
}
cat >"$work/requests" <<'END'
ann: 24=4,9,10,13;
bob: 24=4,9,10,12;

carl: 24=4,9,10,13;
ann: 24=4,9,10,13;
bob: 24=4,9,10,12;
END
cached 0 -p "@$work/requests" --cache off
cp "$work/answers" "$work/scratch"
awk '/^\[/ { n++; found += $3 } END { exit n != 5 || found > 0 }' "$work/out" ||
    fail "--cache off finds something"
cached 0 -p "@$work/requests"
diff "$work/scratch" "$work/answers" || fail "the prefix cache changed an answer"
# bob's problem is ann's but for the last number, carl's is ann's; then two go on from their answers.
awk '/^\[/ { n++; all[n] = substr($1, 2) + 0; found[n] = $3; computed[n] = $5; sum += $5
             bad += found[n] + computed[n] != all[n] }
     /^requests / { bad += $9 != sum }
     END { exit bad || n != 5 || found[1] != 0 || computed[2] >= computed[1] || computed[3] != 1 ||
                found[4] < all[1] + 20 || found[5] < all[2] + 20 }' "$work/out" ||
    { cat "$work/out"; fail "what the prefix cache finds"; }
cached 0 -p - <"$work/requests"
diff "$work/scratch" "$work/answers" || fail "requests from standard input have other answers"

# In a small pool the oldest branches go, but not the conversation that is to stay.
cat >"$work/requests" <<'END'
ann: 24=4,9,10,13;
bob: 30=1,2,3,5;
carl: 17=2,2,3,7;
dora: 60=3,4,5,6;
ann: 24=4,9,10,13;
END
cached 0 -p "@$work/requests" --cache off
cp "$work/answers" "$work/scratch"
export DEFT_DEBUG_CHECK=1
cached 0 -p "@$work/requests" --pool 96
diff "$work/scratch" "$work/answers" || fail "a small pool changed an answer"
grep -q "the least recently used first" "$work/err" || fail "prefix_cache tells of no full pool"
awk '/^\[/ { found = $3 } END { exit found >= 34 }' "$work/out" ||
    fail "an old conversation was not dropped"
cached 0 -p "@$work/requests" --pool 96 --keep ann
diff "$work/scratch" "$work/answers" || fail "--keep changed an answer"
awk '/^\[/ { found = $3 } END { exit found < 34 }' "$work/out" ||
    fail "--keep did not keep a conversation"
unset DEFT_DEBUG_CHECK
cached 1 -p "@$work/requests" --pool 8
cached 1 -p "24=4,9,10,13;"
cached 1 -p "@$work/missing"
cached 2 -p "ann: 24=4,9,10,13;" --cache maybe

for program in tot mcts play best_of_n speculative beam_search prefix_cache; do
    run 0 $program --help
    run 2 $program
    run 2 $program -m "$model" -p 24=1 --tokens x
    run 1 $program -m "$work/missing" -p "24=4,9,10,13"
done
run 1 tot -m "$model" -p "24=4,,9"
run 1 tot -m "$model" -p "@$work/missing"
run 2 tot -m "$model" -p "24=4,9,10,13" --method best
exit $failed
