#!/usr/bin/env bash
# A target under libFuzzer, for so many seconds: run.sh TARGET SECONDS, or run.sh all
# SECONDS. What it learns is in target/fuzz/corpus; with MINIMISE=1 a small part that
# reaches most of it is kept in tests/fuzz/corpus.
# The stable compiler instruments by itself: the flags are of LLVM, not of rustc.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=${1:?target, or all} seconds=${2:-60}
triple=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=" -Cllvm-args=-sanitizer-coverage-$flag"
done
# CARGO_ENCODED_RUSTFLAGS would win over both RUSTFLAGS and .cargo/config.toml.
unset CARGO_ENCODED_RUSTFLAGS
RUSTFLAGS="--cfg fuzzing --cfg getrandom_backend=\"linux_getrandom\" $coverage" \
    cargo build --locked --quiet --profile fuzz --target "$triple" --target-dir target/fuzz \
    -p weft-fuzz --features libfuzzer --bin libfuzzer
program=$PWD/target/fuzz/$triple/fuzz/libfuzzer
names=$target
[ "$target" != all ] || names=$(sed -n 's/^.*target("\([a-z_]*\)",.*/\1/p' tests/fuzz/src/targets/mod.rs)
failed=0
for name in $names; do
    learnt=target/fuzz/corpus/$name kept=tests/fuzz/corpus/$name
    mkdir -p "$learnt" target/fuzz/failures
    inputs=("$learnt")
    [ ! -d "$kept" ] || inputs+=("$kept")
    echo "== $name"
    FUZZ_TARGET=$name FUZZ_SEEDS_TO=$learnt "$program" "${inputs[@]}" \
        -max_total_time="$seconds" -max_len="${MAX_LEN:-4096}" -timeout=10 -rss_limit_mb=1024 \
        -malloc_limit_mb=256 -print_final_stats=0 -verbosity="${VERBOSITY:-0}" \
        -artifact_prefix="target/fuzz/failures/$name-" || failed=1
    if [ -n "${MINIMISE:-}" ]; then
        fresh=$(mktemp -d)
        FUZZ_TARGET=$name "$program" -set_cover_merge=1 -use_counters=0 -verbosity=0 \
            -max_len=1024 "$fresh" "${inputs[@]}" 2>/dev/null || failed=1
        mkdir -p "$kept"
        # Inputs with a name of their own are regressions and stay.
        find "$kept" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
        find "$fresh" -type f | sort | head -n "${KEEP:-64}" | xargs -r cp -t "$kept"
        rm -rf "$fresh"
    fi
    echo "   learnt $(find "$learnt" -type f | wc -l), kept $(find "$kept" -type f 2>/dev/null | wc -l)"
done
exit $failed
