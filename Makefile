# Every target sets up what it needs; nothing is asked.
#   make lab [ARGS="--nodes 5"]   a cluster on this machine, until Ctrl-C
#   make test                     everything, real packets included (root or sudo)
#   make e2e                      the manifest on a real Kubernetes (root or sudo)
#   make bench                    ADD and DEL against the kernel and the reference plugins
#   make bench-check [RENEW=1]    has anything become slower than the baseline?
#   make bench-policy             what 10,000 policies over 10,000 pods cost
#   make bench-datapath           packets between pods, against other ways to wire two nodes
#   make bench-scale [ARGS="mesh --nodes 10,100"]   up to 5,000 nodes; docs/scale/
#   make fuzz TARGET=wire SECONDS=60   a fuzz target, led by coverage; TARGET=all for all
#   make sim [SECONDS=180]        clusters under faults, simulated; SEEDS, NODES, SEED, SCHEDULE
#   make sim-mutants              broken on purpose: does the simulator notice?
#   make test-upgrade [FROM=v0.1.0]   the version before beside this one; FROM: revision or directory
#   make image                    the container image, in target/image
#   make verify                   format, lint, licences; changes nothing
SHELL := bash
ARGS ?=
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BIN := target/$(TRIPLE)/release
export WEFT_BIN_DIR := $(CURDIR)/$(BIN)
export WEFT_CACHE ?= $(HOME)/.cache/weft

# Root runs what touches networks; the build stays with whoever calls make.
ifeq ($(shell id -u),0)
SUDO :=
else
SUDO := sudo -E
export CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_RUNNER := sudo -E
endif

.PHONY: build lab test sim sim-mutants e2e bench fuzz image fmt lint deny verify clean-lab test-upgrade upgrade-fixture

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

# The programs of the version before are built once, into WEFT_CACHE.
test-upgrade:
	@bash tests/setup.sh test
	@$(MAKE) --no-print-directory build
	@previous=$$(bash tests/upgrade/previous $(FROM)) && set -x && WEFT_PREVIOUS_BIN_DIR=$$previous \
	    cargo test --release --locked --workspace --test system -- \
	    upgrade:: --include-ignored --nocapture --test-threads 1 $(ARGS)

# Keeps files as a version writes them, for tests/tests/system/upgrade_state.rs: at every release.
upgrade-fixture:
	@bash tests/setup.sh test
	@$(MAKE) --no-print-directory build
	@previous=$$(bash tests/upgrade/previous $(FROM)) && set -x && WEFT_PREVIOUS_BIN_DIR=$$previous \
	    WEFT_FIXTURE=$(or $(NAME),$(FROM),baseline) cargo test --release --locked --workspace \
	    --test system -- --ignored --exact --nocapture upgrade_state::record

# Without SEEDS, as many as SECONDS allow. A failure prints how to replay it.
sim:
	@bash tests/setup.sh build
	@SIM_SEEDS="$(SEEDS)" SIM_NODES="$(NODES)" SIM_SEED="$(SEED)" SIM_SCHEDULE="$(SCHEDULE)" \
	    SIM_SECONDS="$(or $(SECONDS),$(if $(SEEDS),,$(or $(SIM_SECONDS),180)))" \
	    cargo test --release --locked --workspace --lib -- \
	    --ignored --exact --nocapture sim::tests::sim

sim-mutants:
	@bash tests/setup.sh build
	bash tests/mutants/run.sh $(ARGS)

# Kubernetes is built from Debian's source once, into WEFT_CACHE.
# E2E=e2e_harness: only whether Kubernetes itself works here, with the reference plugins.
e2e: E2E ?= e2e
e2e:
	@bash tests/setup.sh build
	@bash tests/kubernetes/build
	@$(MAKE) --no-print-directory build
	$(BIN)/weft-image --bin-dir $(BIN) --out-dir target/image-e2e
	WEFT_IMAGE=$(CURDIR)/target/image-e2e/weft-docker.tar \
	    cargo test --release --locked --workspace --test system -- \
	    $(E2E) --ignored --nocapture --test-threads 1 $(ARGS)

bench: bench-attach

bench-%:
	@bash tests/setup.sh $(if $(filter check,$*),bench,test)
	@$(MAKE) --no-print-directory build
	$(if $(filter check,$*),$(SUDO) $(BIN)/bench attach)
	$(if $(filter policy,$*),$(BIN)/bench compile)
	$(SUDO) env RENEW="$(RENEW)" $(BIN)/bench $(patsubst policy,packets,$*) $(ARGS)

# Bash counts in SECONDS, so make's own name for it stays out of the environment.
fuzz: TARGET ?= all
fuzz:
	@bash tests/setup.sh fuzz
	@bash tests/fuzz/run.sh $(TARGET) $(or $(SECONDS),60)

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
