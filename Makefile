# tapdom: `make run` shows it, `make test` checks it, `make sim` looks for what no test thought of, `make bench` measures it. All do their set-up.

# `make run SHELL=1` is for people; make has another use for the name.
ifeq ($(SHELL),1)
override SHELL := /bin/sh
run_flags := --shell
endif

image := target/x86_64-unknown-none/release/boot
boots := build/boots
# Static, so that it runs in any dom0: the target is named, or build scripts would be static too.
tap_ctl := target/x86_64-unknown-linux-gnu/release/tap-ctl

vhd := target/x86_64-unknown-linux-gnu/release/vhd

# What Debian must have installed; the last two judge images. The parts of the boots are fetched by `boots` itself and never installed.
packages := gcc libc6-dev binutils libxen-dev qemu-system-x86 qemu-utils python3-libvhdi

# LOADS='depth 32' measures those loads alone, RUNS=2 shows how far two runs are apart, and `make profile` where the
# instructions go.
bench_flags := $(foreach peer,$(PEERS),--peers $(peer)) $(if $(LOADS),--loads '$(LOADS)') $(if $(RUNS),--runs $(RUNS))

.PHONY: bench bench-formats bench-nbd bench-neighbours bench-processors bench-wall footprint profile run test setup build lint host sim crash boots fuzz loom mutants miri size clean

run: build
	$(boots) run $(run_flags)

test: setup lint host loom boots

setup:
	@command -v cargo >/dev/null && command -v rustup >/dev/null || { echo "tapdom needs Rust: install rustup first"; exit 1; }
	@missing=; for p in $(packages); do \
		dpkg -s $$p 2>/dev/null | grep -q "^Status: install ok installed" || missing="$$missing $$p"; done; \
	[ "$$(id -u)" != 0 ] || ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || apt-get update; \
	[ -z "$$missing" ] || { \
		[ "$$(id -u)" = 0 ] || { echo "as root, install first: apt-get install$$missing"; exit 1; }; \
		apt-get install -y --no-install-recommends $$missing; }
	@rustup target list --installed | grep -qx x86_64-unknown-none || rustup target add x86_64-unknown-none

build: setup
	RUSTFLAGS="-C force-frame-pointers=yes" cargo build --locked --release -p boot --target x86_64-unknown-none
	cargo build --locked --release -p tools
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release -p tap-ctl -p vhd --target x86_64-unknown-linux-gnu
	mkdir -p build
	cp $(image) build/tapdom.debug
	strip -o build/tapdom.elf build/tapdom.debug
	cp target/release/boots target/release/agent build/
	strip -o build/tap-ctl $(tap_ctl)
	strip -o build/vhd $(vhd)

lint: setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cd model && cargo fmt --check && cargo clippy --locked --all-targets -- -D warnings
	RUSTFLAGS="-C force-frame-pointers=yes" cargo clippy --locked --release -p boot --target x86_64-unknown-none -- -D warnings

host:
	cargo test --locked --workspace

# SEEDS=n plays so many worlds, SEED=n one of them step by step.
sim: setup
	cargo build --locked --profile sim -p sim --bin sim
	target/sim/sim

# Power cuts, more of them than the ordinary tests have.
crash:
	SEEDS=200 DRAWS=20 cargo test --locked --release -p sim --test crash --test vhd -- --nocapture
	SEEDS=60 DRAWS=10 cargo test --locked --release -p sim --test vhd_tool -- --nocapture

# What image formats cost, in instructions.
bench-formats: setup
	@command -v valgrind >/dev/null || { echo "install valgrind first: apt-get install valgrind"; exit 1; }
	cargo build --locked --release -p formats
	target/release/formats

# The engine behind an NBD server beside QEMU's and nbdkit's: ratios of one run. ROUNDS=n is how often.
bench-nbd: packages += fio nbdkit
bench-nbd: setup
	cargo build --locked --release -p nbd
	target/release/nbd bench $(if $(ROUNDS),--rounds $(ROUNDS))

boots: build
	$(boots) test

bench: build
	$(boots) bench $(bench_flags)

# The same with a guest of four processors, and backends beside each other by the clock on the wall.
bench-processors: build
	$(boots) bench --processors 4 $(bench_flags)

bench-wall: build
	$(boots) wall $(if $(ROUNDS),--rounds $(ROUNDS))

# What a guest that asks for all it can get makes of a quiet one's requests.
bench-neighbours: build
	$(boots) neighbours

# How long tapdom and its disks take to be of use, and in what memory. MANY=n disks are attached at once.
footprint: build
	$(boots) footprint $(if $(MANY),--many $(MANY))

profile: build
	$(boots) bench --profile $(bench_flags)

# `make fuzz`, `make fuzz TARGET=store SECONDS=600`. What is found is a file in fuzz/artifacts; new inputs that reach new
# code go to build/fuzz.
TARGET := $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))
SECONDS := 20

fuzz:
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@set -e; for target in $(TARGET); do \
		echo "== $$target"; mkdir -p build/fuzz/$$target; \
		(cd fuzz && cargo +stable fuzz run --fuzz-dir . -s none $$target ../build/fuzz/$$target corpus/$$target -- \
			-max_total_time=$(SECONDS) -max_len=1024 -verbosity=0 -print_final_stats=1); done

# In a directory of its own: the checker's dependencies are not the product's.
loom:
	cd model && cargo test --locked --quiet

# Known bugs, each with the test that has to notice it; then those that cargo-mutants makes, which takes the better part of a
# day: SHARD=k/n is a part of them.
mutants: setup
	@command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants
	cargo build --locked -p tools --bin mutants
	@target/debug/mutants known; known=$$?; target/debug/mutants made $(SHARD) && exit $$known

# The lines that are unsafe and run on the host, and the tests around them, in an interpreter that knows the rules.
miri:
	@rustup toolchain list | grep -q ^nightly || { echo "Miri needs a nightly toolchain: rustup toolchain install nightly --profile minimal"; exit 1; }
	@rustup component list --toolchain nightly --installed | grep -q ^miri || rustup component add --toolchain nightly miri rust-src
	cargo +nightly miri test --locked --target-dir target/miri -p xen --lib --tests

size: build
	size -A build/tapdom.debug | grep -v debug
	ls -l build/tapdom.elf

clean:
	rm -rf target build
