# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# For quickstart.sh and tests/run.sh, which source it: find out what is missing, by use and not by
# package, and install that with apt-get. Names are Debian's.
missing=

need() { # package, command that succeeds if it is there
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

has_header() {
    printf '#include <%s>\n' "$1" | cc -E -
}

need_to_build() {
    need gcc command -v cc
    need libc6-dev has_header stdlib.h
    need make command -v make
    need autoconf command -v autoconf
    need automake command -v automake
    need libtool command -v libtoolize
    need pkg-config command -v pkg-config
    need libmimalloc-dev has_header mimalloc.h
    need libpcre2-dev pkg-config --exists libpcre2-8
}

need_to_fetch() {
    need ca-certificates test -f /etc/ssl/certs/ca-certificates.crt
    need python3-pip python3 -m pip --version
}

need_to_test() {
    need check pkg-config --exists check
    need mandoc command -v mandoc
    need g++ command -v g++
    need clang-format-14 command -v clang-format-14
    need valgrind command -v valgrind
    need libc6-dbg test -d /usr/lib/debug/.build-id
}

# Other compilers and machines, for the stages of tests/run.sh that have them.
need_to_cross() {
    need clang-14 command -v clang-14
    need musl-tools command -v musl-gcc
    need gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
    need libc6-dev-arm64-cross test -d /usr/aarch64-linux-gnu/include
    need gcc-i686-linux-gnu command -v i686-linux-gnu-gcc
    need libc6-dev-i386-cross test -d /usr/i686-linux-gnu/include
    need qemu-user-static command -v qemu-aarch64-static
}

# Static libraries of another architecture: packages are fetched and unpacked below a directory. The
# lists of the system stay as they are.
fetch_foreign() { # directory, architecture, package...
    root=$1
    arch=$2
    shift 2
    test ! -f "$root/complete" || return 0
    command -v apt-get >/dev/null || return 1
    mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial"
    : >"$root/apt/status"
    cat >"$root/apt/conf" <<EOF
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
Dir::State "$root/apt";
Dir::State::lists "$root/apt/lists";
Dir::State::status "$root/apt/status";
Dir::Cache "$root/apt";
Debug::NoLocking "1";
EOF
    (
        cd "$root/apt"
        APT_CONFIG=$root/apt/conf
        export APT_CONFIG
        apt-get -q update || : # not all of it may be needed
        apt-get -q download "$@" && for package in ./*.deb; do dpkg-deb -x "$package" "$root"; done
    ) && find "$root" -name '*.so*' -delete && : >"$root/complete"
}

# Install what is missing, or say what that is and go on: the build says what it cannot do without.
install_missing() { # log file
    test -n "$missing" || return 0
    as=
    if ! command -v apt-get >/dev/null; then
        echo "missing (names of Debian packages):$missing"
        return 0
    elif test "$(id -u)" != 0; then
        if ! command -v sudo >/dev/null; then
            echo "missing; as root do: apt-get install$missing"
            return 0
        fi
        as=sudo
    fi
    echo "installing:$missing"
    # The list is to be split into words.
    # shellcheck disable=SC2086
    if $as apt-get -q update >"$1" 2>&1 &&
        $as env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
            install $missing >>"$1" 2>&1; then
        return 0
    fi
    tail -n 5 "$1"
    echo "apt-get failed (log: $1); missing:$missing"
}
