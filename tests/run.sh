#!/bin/sh
# SPDX-License-Identifier: MIT
# Everything that CI runs:
#
#     sh tests/run.sh [stage...]
#
#   plain      build with -Werror, make check
#   asan       the same under AddressSanitizer and UndefinedBehaviorSanitizer
#   tsan       the tests with threads under ThreadSanitizer (make check-threads)
#   valgrind   the unit tests under memcheck (make check-valgrind)
#   install    make install: pages, pkg-config, the first program of README.md
#   nocuda     a build without CUDA has no trace of it
#   cuda       a build with CUDA: device code for all targets, make check where there may be no GPU,
#              no dependency on the driver, make distcheck; skipped without nvcc
#   distcheck  make distcheck
#   clang      the library, the engine and their tests by clang 14
#   musl       the library by musl-gcc, static, and the tests that need no other library
#   aarch64    everything for ARM, and the tests that are programs under qemu
#   m32        the library for 32 bits and its tests
#
# clang, musl, aarch64 and m32 are skipped where their tools are missing. With DEFT_CI=1 in the
# environment these are installed, and a stage but cuda that lacks a tool has failed. A line a stage,
# and one last line: N passed, N failed, N skipped. The exit status is 0 when none failed. The random
# tests are cut short so that all of this takes under half an hour on two cores; DEFT_TEST_SCALE=1 in
# the environment runs them in full. Builds in build/test/ ($DEFT_BUILD/test), where each stage
# leaves its log.
set -eu
cd "$(dirname "$0")/.."
top=$(pwd)
base=${DEFT_BUILD:-$top/build}/test
jobs=$(nproc 2>/dev/null || echo 2)
stages=${*:-plain asan tsan valgrind install nocuda distcheck clang musl aarch64 m32 cuda}
passed=0
failed=0
skipped=0
scale=${DEFT_TEST_SCALE:-}

mkdir -p "$base"

# A build or a check that hangs is a failure.
limited() {
    if command -v timeout >/dev/null; then
        timeout -k 20 "${DEFT_TEST_TIMEOUT:-1500}" "$@"
    else
        "$@"
    fi
}

make_in() { # directory, arguments of make
    dir=$1
    shift
    limited make -C "$dir" -j"$jobs" "$@"
}

configure_in() { # directory, arguments of configure
    dir=$1
    shift
    mkdir -p "$dir"
    test -f "$dir/Makefile" || (cd "$dir" && "$top/configure" "$@")
}

plain() {
    configure_in "$base/plain" --enable-werror --with-cuda=no --prefix="$base/plain/stage" &&
        make_in "$base/plain"
}

stage_plain() {
    plain && make_in "$base/plain" check VERBOSE=1
}

# The sanitizers and valgrind know malloc, not mimalloc.
stage_asan() {
    flags="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
    configure_in "$base/asan" --without-mimalloc --enable-debug=2 --with-cuda=no --disable-static \
        CFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" &&
        make_in "$base/asan" &&
        make_in "$base/asan" check VERBOSE=1
}

stage_tsan() {
    # gcc's ThreadSanitizer does not know the address layouts of newer kernels.
    fixed=
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        fixed="setarch $(uname -m) -R"
    fi
    configure_in "$base/tsan" --without-mimalloc --with-cuda=no --disable-static \
        CFLAGS="-O1 -g -fsanitize=thread" LDFLAGS="-fsanitize=thread" &&
        make_in "$base/tsan" || return 1
    # shellcheck disable=SC2086
    limited $fixed \
        make -C "$base/tsan" -j"$jobs" check-threads VERBOSE=1
}

stage_valgrind() {
    if ! command -v valgrind >/dev/null; then
        echo "valgrind is not installed"
        return 77
    fi
    configure_in "$base/valgrind" --without-mimalloc --with-cuda=no --disable-shared &&
        make_in "$base/valgrind" &&
        make_in "$base/valgrind" check-valgrind VERBOSE=1
}

fenced() { # which block of README.md, its language
    awk -v want="$1" -v start='```'"$2" '
        on && /^```$/ { exit }
        on
        $0 == start && ++n == want { on = 1 }' README.md
}

# The program that README.md shows, against what was installed, and what it prints.
first_program() { # directory of the installation
    fenced 1 c >"$1/first.c"
    fenced 1 text >"$1/first.want"
    PKG_CONFIG_PATH=$1/lib/pkgconfig
    export PKG_CONFIG_PATH
    # What pkg-config says is to be split into words.
    # shellcheck disable=SC2046
    test "$(pkg-config --modversion deft)" = "$(sed -n 's/^version=//p' VERSION)" &&
        cc -Wall -Werror -o "$1/first" "$1/first.c" $(pkg-config --cflags --libs deft) &&
        LD_LIBRARY_PATH=$1/lib "$1/first" >"$1/first.out" &&
        diff "$1/first.want" "$1/first.out" &&
        cc -Wall -Werror -o "$1/first-static" "$1/first.c" $(pkg-config --cflags deft) \
            "$1/lib/libdeft.a" $(pkg-config --static --libs deft | sed 's/-ldeft//') &&
        "$1/first-static" >"$1/first-static.out" &&
        diff "$1/first.want" "$1/first-static.out"
}

stage_install() {
    plain && make_in "$base/plain" install || return 1
    pages=$base/plain/stage/share/man
    while read -r name; do
        test -f "$pages/man3/$name.3" || { echo "$name.3 is not installed"; return 1; }
    done <tests/gates/symbols.txt
    test -f "$pages/man7/deft.7" || { echo "deft.7 is not installed"; return 1; }
    (first_program "$base/plain/stage")
}

stage_nocuda() {
    plain || return 1
    lib=$base/plain/.libs/libdeft.so
    readelf -d "$lib" || return 1
    if readelf -d "$lib" | grep -iE 'cuda|nvidia|nvrtc|cublas'; then
        echo "libdeft.so depends on CUDA"
        return 1
    fi
}

stage_distcheck() {
    plain && make_in "$base/plain" distcheck VERBOSE=1 \
        DISTCHECK_CONFIGURE_FLAGS="--enable-werror --with-cuda=no"
}

# GPU tests report SKIP where there is none. Everything else runs, the fall back to the CPU among it.
stage_cuda() {
    if ! command -v nvcc >/dev/null && ! test -x /usr/local/cuda/bin/nvcc; then
        echo "nvcc is not installed"
        return 77
    fi
    configure_in "$base/cuda" --enable-werror --with-cuda=yes &&
        make_in "$base/cuda" &&
        make_in "$base/cuda" check VERBOSE=1 || return 1
    lib=$base/cuda/.libs/libdeft.so
    if readelf -d "$lib" | grep -iE 'NEEDED.*(cuda|nvidia|stdc)'; then
        echo "libdeft.so needs the driver or a C++ runtime to be loaded"
        return 1
    fi
    make_in "$base/cuda" distcheck VERBOSE=1 DISTCHECK_CONFIGURE_FLAGS="--enable-werror --with-cuda=yes"
}

# ---- other compilers and machines ----

needs() { # command
    command -v "$1" >/dev/null || { echo "$1 is not installed"; return 77; }
}

# Build, and run the tests that are programs. LOG_COMPILER runs a program that this machine cannot.
programs() { # directory, LOG_COMPILER, arguments of configure...
    dir=$1
    runner=$2
    shift 2
    configure_in "$dir" --enable-werror --with-cuda=no --disable-shared "$@" &&
        make_in "$dir" &&
        make_in "$dir" check-programs LOG_COMPILER="$runner" VERBOSE=1
}

stage_clang() {
    needs clang-14 || return
    programs "$base/clang" "" CC=clang-14
}

# Libraries of the system are for another C library.
stage_musl() {
    needs musl-gcc || return
    (PKG_CONFIG_LIBDIR=/nonexistent && export PKG_CONFIG_LIBDIR &&
        programs "$base/musl" "" CC=musl-gcc --without-mimalloc LDFLAGS=-static) &&
        { grep -q 'no makecontext()' "$base/musl.log" || { echo "no word on the engine"; return 1; }; }
}

foreign() { # name, host, Debian's architecture, where its libraries are, LOG_COMPILER, package...
    dir=$base/$1
    host=$2
    arch=$3
    libs=$4
    runner=$5
    shift 5
    needs "$host-gcc" || return
    mkdir -p "$dir-root"
    fetch_foreign "$dir-root" "$arch" "$@" || { echo "no packages for $arch"; return 77; }
    (PKG_CONFIG_SYSROOT_DIR=$dir-root && PKG_CONFIG_LIBDIR=$dir-root/usr/lib/$libs/pkgconfig &&
        export PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_LIBDIR &&
        unset DEFT_TEST_MODEL && # a model takes too long under an emulator
        programs "$dir" "$runner" --host="$host" --without-mimalloc)
}

stage_aarch64() {
    needs qemu-aarch64-static || return
    foreign aarch64 aarch64-linux-gnu arm64 aarch64-linux-gnu \
        "qemu-aarch64-static -L /usr/aarch64-linux-gnu" check libsubunit-dev libpcre2-dev
}

stage_m32() {
    lib=/usr/i686-linux-gnu/lib
    foreign m32 i686-linux-gnu i386 i386-linux-gnu "$lib/ld-linux.so.2 --library-path $lib" \
        check libsubunit-dev
}

# What the summaries of automake in a log add up to. A verbose log has each twice where a test
# failed: only those under the title count.
count() { # log, pattern of words
    awk -v words="^($2):$" '
        /^Testsuite summary/ { on = 1 }
        on && $1 == "#" && $2 ~ words { n += $3 }
        on && $1 == "#" && $2 == "ERROR:" { on = 0 }
        END { print n + 0 }' "$1"
}

# The share of the random tests that a stage has time for.
scale_of() {
    case $1 in
    plain) echo 0.25 ;;
    clang | musl | aarch64 | m32) echo 0.01 ;;
    *) echo 0.05 ;;
    esac
}

run_stage() {
    DEFT_TEST_SCALE=${scale:-$(scale_of "$1")}
    export DEFT_TEST_SCALE
    log=$base/$1.log
    begin=$(date +%s)
    status=0
    "stage_$1" >"$log" 2>&1 || status=$?
    seconds=$(($(date +%s) - begin))
    p=$(count "$log" 'PASS|XFAIL')
    f=$(count "$log" 'FAIL|XPASS|ERROR')
    s=$(count "$log" SKIP)
    if test "$status" = 77 && test -n "${DEFT_CI:-}" && test "$1" != cuda; then
        f=$((f + 1))
    elif test "$status" = 77; then
        s=$((s + 1))
    elif test "$status" != 0; then # for itself, unless its tests say why
        test "$f" != 0 || f=1
    elif test "$((p + f + s))" = 0 && test "$1" != install && test "$1" != nocuda; then
        echo "no test ran" >>"$log"
        f=1
    else
        case $1 in # one for itself, where it is more than its tests
        install | nocuda | distcheck | cuda) p=$((p + 1)) ;;
        esac
    fi
    printf '%-10s %4d s  %d passed, %d failed, %d skipped%s\n' "$1" "$seconds" "$p" "$f" "$s" "$note"
    if test "$f" != 0; then
        echo "---- the end of $log"
        tail -n 60 "$log"
        echo "----"
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    skipped=$((skipped + s))
}

# shellcheck source=examples/packages.sh
. examples/packages.sh
need_to_build
need_to_fetch
need_to_test
test -z "${DEFT_CI:-}" || need_to_cross
install_missing "$base/packages.log"
test -z "$missing" || rm -f "$base"/*/Makefile # configured without them

note=
if test -z "${DEFT_TEST_MODEL:-}"; then
    DEFT_TEST_MODEL=$(sh examples/get_model.sh 2>"$base/model.log") || DEFT_TEST_MODEL=
fi
if test -n "$DEFT_TEST_MODEL"; then
    export DEFT_TEST_MODEL
else
    unset DEFT_TEST_MODEL
    note=" (no model: its tests are skipped)"
fi

if ! test -f configure || ! test -f Makefile.in; then
    autoreconf -fi >"$base/autoreconf.log" 2>&1 || {
        tail -n 20 "$base/autoreconf.log"
        echo "0 passed, 1 failed, 0 skipped"
        exit 1
    }
fi
for stage in $stages; do
    case $stage in
    plain | asan | tsan | valgrind | install | nocuda | distcheck | clang | musl | aarch64 | m32 | cuda)
        run_stage "$stage"
        ;;
    *)
        echo "run.sh: no stage $stage"
        failed=$((failed + 1))
        ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
test "$failed" = 0
