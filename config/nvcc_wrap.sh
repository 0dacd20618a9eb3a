#!/bin/sh
# SPDX-License-Identifier: MIT
# nvcc for libtool: hands -fPIC, -DPIC and the like to the host compiler, and fails on what it does not
# know, so that no flag is lost in silence.
set -eu
nvcc=$1
shift
n=$#
while test "$n" -gt 0; do
    arg=$1
    shift
    case $arg in
    -fPIC | -fpic | -fPIE | -fpie) set -- "$@" -Xcompiler "$arg" ;;
    -gencode | -o | -c | -Xcompiler | -Xptxas) set -- "$@" "$arg" ;;
    -O* | -std=* | -I* | -D* | arch=* | -arch=* | -lineinfo | -g | -G) set -- "$@" "$arg" ;;
    -*)
        echo "nvcc_wrap.sh: unknown flag $arg" >&2
        exit 1
        ;;
    *) set -- "$@" "$arg" ;;
    esac
    n=$((n - 1))
done
# No C++ runtime: the stubs that nvcc writes need none without exceptions and guarded statics.
exec "$nvcc" -Xcompiler -fvisibility=hidden -Xcompiler -fno-exceptions -Xcompiler -fno-rtti \
    -Xcompiler -fno-threadsafe-statics "$@"
