#!/usr/bin/env bash
# Breaks the code on purpose, once for every patch here, and shows that the
# simulator notices. A patch that nothing notices is a hole in the simulator.
#   tests/mutants/run.sh [NAME…]    MUTANT_SECONDS=120 for each, MUTANT_NODES=5
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=${MUTANT_SECONDS:-120}
scratch=$(mktemp -d)
export CARGO_TARGET_DIR=${MUTANT_TARGET:-$root/target/mutants} CARGO_INCREMENTAL=1
trap 'git -C "$root" worktree remove --force "$scratch/weft" 2>/dev/null || true; rm -rf "$scratch"' EXIT

git -C "$root" worktree add --quiet --detach "$scratch/weft" HEAD
cd "$scratch/weft"
# Unoptimised: what takes time is building.
fast=(--config profile.release.package.weft-agent.opt-level=0 --config profile.release.package.weft-ipam.opt-level=0)
build() { cargo "${fast[@]}" test --release --locked --quiet -p weft-agent --lib --no-run 2>"$scratch/build.log"; }

names=("$@")
[ ${#names[@]} -gt 0 ] || names=($(cd "$here" && ls ./*.patch | sed 's|^\./||; s|\.patch$||'))
missed=()
for name in "${names[@]}"; do
    git checkout --quiet .
    git apply "$here/$name.patch"
    build || { cat "$scratch/build.log"; echo "$name does not build"; exit 1; }
    start=$SECONDS
    # One failure is enough, and nobody wants it shrunk.
    if SIM_SECONDS=$seconds SIM_NODES=${MUTANT_NODES:-5} SIM_FROM=1 SIM_FRESH=1 SIM_FIRST=1 \
        cargo "${fast[@]}" test --release --locked --quiet -p weft-agent --lib -- --ignored --exact \
        --nocapture sim::tests::sim >"$scratch/$name.log" 2>&1; then
        missed+=("$name")
        printf '%-32s NOT NOTICED in %s s\n' "$name" "$seconds"
    else
        why=$(grep -m1 -A1 '^FAILED' "$scratch/$name.log" | tail -1 | sed 's/^ *//' | cut -c1-110)
        # A build or tool that failed is no proof.
        [ -n "$why" ] || { tail -20 "$scratch/$name.log"; exit 1; }
        printf '%-32s noticed after %3s s: %s\n' "$name" $((SECONDS - start)) "$why"
    fi
done
echo "${#names[@]} mutants, ${#missed[@]} not noticed"
[ ${#missed[@]} -eq 0 ]
