#!/usr/bin/env bash
# Builds the programs of the image and writes it: target/image/weft-{oci,docker}.tar.
# The same source and toolchain give the same bytes, in whatever directory.
#   IMAGE_PROFILE=release  the programs of `make build`: larger, but there at once
#   IMAGE_NAME=NAME:TAG    another name than localhost/weft:VERSION
#   OUT_DIR=DIR            another place
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
profile=${IMAGE_PROFILE:-dist}
triple=$(rustc -vV | sed -n 's/^host: //p')

flags=()
args=()
if [ "$profile" = dist ]; then
    # What the programs say of their sources must not tell who built them where.
    remap=("$PWD=/weft")
    for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
        remap+=("${registry%/}=/crates")
    done
    # Packed relocations are 0.6 MB less. The C library that is linked in must know them
    # (glibc 2.36); with an older one the programs would not start, which is tried below.
    list=$(printf '"--remap-path-prefix=%s",' "${remap[@]}")'"-Clink-arg=-Wl,-z,pack-relative-relocs"'
    # Added to the flags of .cargo/config.toml, for these builds only.
    flags=(--config "target.'cfg(all(target_os = \"linux\", target_env = \"gnu\"))'.rustflags=[$list]")
    # What the two static programs may take on a node: nothing may grow unseen.
    args=(--max-bytes 15000000)
fi
cargo fetch --locked --quiet
# Without default features: `agent lab` is not for containers.
cargo build --locked --profile "$profile" "${flags[@]}" --no-default-features \
    -p weft-agent -p weft-cni-shim --bins
"target/$triple/$profile/agent" --version
cargo run --locked --quiet --release -p weft-image -- \
    --bin-dir "target/$triple/$profile" --out-dir "${OUT_DIR:-target/image}" \
    ${IMAGE_NAME:+--name "$IMAGE_NAME"} "${args[@]}"
