#!/usr/bin/env bash
# Installs what lab and tests need and this machine (Debian, Ubuntu) lacks.
# Asks nothing; installs nothing if nothing is missing.
# usage: setup.sh build|lab|test|bench|fuzz
set -euo pipefail
what=${1:-test}

missing=()
need() { # PACKAGE COMMAND...
    local package=$1 command
    shift
    for command in "$@"; do
        if ! PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null; then
            missing+=("$package")
            return
        fi
    done
}

if ! command -v cargo >/dev/null; then
    echo "setup: no Rust toolchain: see https://rustup.rs" >&2
    exit 1
fi
need gcc gcc
# The static C library; every libc6-dev has it, but not every gcc has libc6-dev.
[ "$(gcc -print-file-name=libc.a 2>/dev/null || echo libc.a)" = libc.a ] && missing+=(libc6-dev)
[ "$what" != fuzz ] || need g++ g++
if [ "$what" = lab ] || [ "$what" = test ] || [ "$what" = bench ]; then
    need iproute2 ip
    need nftables nft
    need iputils-ping ping
    need procps ps
fi
if [ "$what" = bench ]; then
    need valgrind valgrind
    need iptables iptables
    [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
fi
if [ "$what" = test ]; then
    need podman podman
    need conmon conmon
    need crun crun
    need iptables iptables-nft iptables-legacy
    need util-linux nsenter unshare setpriv
    need tar tar
    [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
    # A busybox that needs no library, for the image of the podman tests.
    dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q ' installed$' || missing+=(busybox-static)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: install these by hand, this is no Debian or Ubuntu: ${missing[*]}" >&2
    exit 1
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: run as root, or install as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    root=(sudo)
fi
echo "setup: installing ${missing[*]}"
install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${root[@]}" apt-get update -q && "${root[@]}" "${install[@]}"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "setup: could not install ${missing[*]}" >&2
    exit 1
fi
