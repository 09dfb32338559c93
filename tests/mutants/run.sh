#!/usr/bin/env bash
# Breaks the code on purpose, once for every patch here, and shows that the
# simulator notices. A patch that nothing notices is a hole in the simulator.
#   tests/mutants/run.sh [NAME…]    MUTANT_SECONDS=120 for each, MUTANT_NODES=5
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=${MUTANT_SECONDS:-120}
# What `make sim` and `make test` have built of others' code serves here as well.
export CARGO_TARGET_DIR=${MUTANT_TARGET:-$root/target} CARGO_INCREMENTAL=1
# Always the same place, so that only what a patch touches is built again; not below
# this one, whose settings of cargo would count twice.
copy=${TMPDIR:-/tmp}/weft-mutants-$(cksum <<<"$root" | cut -d' ' -f1)
logs=$CARGO_TARGET_DIR/mutants
remove() { git -C "$root" worktree remove --force "$copy" 2>/dev/null || rm -rf "$copy"; }
trap remove EXIT

mkdir -p "$logs"
remove
git -C "$root" worktree prune
git -C "$root" worktree add --quiet --detach "$copy" HEAD
cd "$copy"

# Our own code unoptimised: what takes time is building. Prints the test program.
build() {
    cargo --config profile.release.package.weft-agent.opt-level=0 \
        --config profile.release.package.weft-ipam.opt-level=0 \
        test --release --locked --quiet -p weft-agent --lib --no-run --message-format=json \
        2>"$logs/build.log" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

# Runs fresh seeds until one fails; one failure is enough, and nobody wants it shrunk.
simulate() {
    SIM_SECONDS=$seconds SIM_NODES=${MUTANT_NODES:-5} SIM_FROM=1 SIM_FRESH=1 SIM_FIRST=1 \
        "$1" --ignored --exact --nocapture sim::tests::sim >"$2" 2>&1
}

control=$(build) && [ -n "$control" ] || { cat "$logs/build.log"; exit 1; }
# Nothing may be noticed where nothing is broken.
simulate "$control" "$logs/control.log" || {
    grep -m1 -A1 '^FAILED' "$logs/control.log"
    echo "something is wrong without any mutant"
    exit 1
}

names=("$@")
[ ${#names[@]} -gt 0 ] || names=($(cd "$here" && ls ./*.patch | sed 's|^\./||; s|\.patch$||'))
missed=()
for name in "${names[@]}"; do
    git checkout --quiet .
    git apply "$here/$name.patch"
    program=$(build) && [ -n "$program" ] || {
        cat "$logs/build.log"
        echo "$name does not build"
        exit 1
    }
    start=$SECONDS
    if simulate "$program" "$logs/$name.log"; then
        missed+=("$name")
        ran=$(sed -n 's/^\([0-9]*\) schedules in .*/\1/p' "$logs/$name.log")
        printf '%-32s NOT NOTICED in %s s, %s schedules\n' "$name" "$seconds" "$ran"
    else
        why=$(grep -m1 -A1 '^FAILED' "$logs/$name.log" | tail -1 | sed 's/^ *//' | cut -c1-110)
        # A build or tool that failed is no proof.
        [ -n "$why" ] || { tail -20 "$logs/$name.log"; exit 1; }
        printf '%-32s noticed after %3s s: %s\n' "$name" $((SECONDS - start)) "$why"
    fi
done
echo "${#names[@]} mutants, ${#missed[@]} not noticed"
[ ${#missed[@]} -eq 0 ]
