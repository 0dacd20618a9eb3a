#!/bin/sh
# SPDX-License-Identifier: MIT
# From a checkout to a beam search over a real model, in one command:
#
#     sh examples/quickstart.sh [-m MODEL.gguf] [options of beam_search]
#
# Installs what is missing (Debian), builds in build/ ($DEFT_BUILD), fetches a small model, searches.
# A later run does only what is left to do.
set -eu
cd "$(dirname "$0")/.."
top=$(pwd)
build=${DEFT_BUILD:-$top/build}
prompt="Why do leaves fall in autumn?"

model=
asked=
n=$#
while test "$n" -gt 0; do # each argument goes to the end of the list, or not
    case $1 in
    -h | --help)
        sed -n '3,8s/^# \{0,1\}//p' "$top/examples/quickstart.sh"
        exit 0
        ;;
    -m)
        test "$n" -gt 1 || { echo "quickstart: -m wants a file" >&2; exit 2; }
        model=$2
        case $model in /*) ;; *) model=$OLDPWD/$model ;; esac
        shift
        n=$((n - 1))
        ;;
    --) ;;
    -p) asked=yes; set -- "$@" "$1" ;;
    *) set -- "$@" "$1" ;;
    esac
    shift
    n=$((n - 1))
done

say() {
    echo "quickstart: $*"
}

stop() {
    echo "quickstart: $*" >&2
    exit 1
}

logged() { # what, command...
    what=$1
    shift
    "$@" >>"$build/quickstart.log" 2>&1 || {
        tail -n 20 "$build/quickstart.log" >&2
        stop "$what failed (log: $build/quickstart.log)"
    }
}

configure() {
    say "configuring"
    cuda=no # compiling for GPUs takes a minute
    ! nvidia-smi -L >/dev/null 2>&1 || cuda=guess
    (cd "$build" && logged configure "$top/configure" --disable-static --with-cuda=$cuda)
}

mkdir -p "$build"
: >"$build/quickstart.log"

# Packages.
# shellcheck source=examples/packages.sh
. examples/packages.sh
need_to_build
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/libdeft
test -n "$model" || test -n "$(find "$cache" -name '*.gguf' 2>/dev/null)" || need_to_fetch
install_missing "$build/packages.log"

# The library and the example.
if ! test -f configure || ! test -f Makefile.in; then
    say "making configure"
    logged autoreconf autoreconf -fi
fi
test -f "$build/Makefile" || configure
make -s -C "$build" -q examples/beam_search >/dev/null 2>&1 || say "building in $build"
logged make make -C "$build" -j"$(nproc 2>/dev/null || echo 2)"
if ! test -x "$build/examples/beam_search"; then # configured when a package was missing
    configure
    logged make make -C "$build" -j"$(nproc 2>/dev/null || echo 2)"
fi
test -x "$build/examples/beam_search" || stop "beam_search was not built; missing:${missing:- see $build/config.log}"

# A game, with the model that is in the repository.
if test -z "$model$asked"; then
    say "tot -m examples/countdown/countdown.gguf -p 24=1,4,7,13 --samples 16"
    "$build/examples/tot" -m examples/countdown/countdown.gguf -p 24=1,4,7,13 --samples 16 --dot "$build/game.dot"
    echo
fi

# The model, and the search.
test -n "$model" || model=$(sh examples/get_model.sh) || exit 1
test -r "$model" || stop "cannot read $model"
test -n "$asked" || set -- -p "$prompt" "$@"
say "beam_search -m $model $*"
exec "$build/examples/beam_search" -m "$model" "$@"
