# Every target sets up what it needs; nothing is asked.
#   make lab [ARGS="--nodes 5"]   a cluster on this machine, until Ctrl-C
#   make test                     everything, real packets included (root or sudo)
#   make bench                    ADD and DEL against bridge + host-local
#   make image                    the container image, in target/image
#   make verify                   format, lint, licences; changes nothing
SHELL := bash
ARGS ?=
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BIN := target/$(TRIPLE)/release
export WEFT_BIN_DIR := $(CURDIR)/$(BIN)

# Root runs what touches networks; the build stays with whoever calls make.
ifeq ($(shell id -u),0)
SUDO :=
else
SUDO := sudo -E
export CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_RUNNER := sudo -E
endif

.PHONY: build lab test bench image fmt lint deny verify clean-lab

build:
	@bash tests/setup.sh build
	cargo build --release --locked --workspace --bins

lab:
	@bash tests/setup.sh lab
	@$(MAKE) --no-print-directory build
	$(SUDO) $(BIN)/agent lab $(ARGS)

test:
	@bash tests/setup.sh test
	@$(MAKE) --no-print-directory build
	@if cargo nextest --version >/dev/null 2>&1; then \
	    set -x; cargo nextest run --release --locked --workspace $(ARGS); \
	else \
	    set -x; cargo test --release --locked --workspace $(ARGS) -- --test-threads 2 --show-output; \
	fi

bench:
	@bash tests/setup.sh test
	@$(MAKE) --no-print-directory build
	$(SUDO) $(BIN)/bench_attach

image:
	@bash tests/setup.sh build
	@bash deploy/image/build.sh

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

deny:
	cargo deny --locked check licenses bans sources

verify: lint deny

clean-lab:
	$(SUDO) $(BIN)/agent lab --down
