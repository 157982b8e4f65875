# tapdom: `make run` shows it, `make test` checks it. Both do all their set-up.

# `make run SHELL=1` is for people; make has another use for the name.
ifeq ($(SHELL),1)
override SHELL := /bin/sh
run_flags := --shell
endif

image := target/x86_64-unknown-none/release/boot
boots := target/release/boots

.PHONY: run test build lint host boots size clean

run: build
	$(boots) run $(run_flags)

test: lint host boots

build:
	rustup target list --installed | grep -qx x86_64-unknown-none || rustup target add x86_64-unknown-none
	RUSTFLAGS="-C force-frame-pointers=yes" cargo build --locked --release -p boot --target x86_64-unknown-none
	cargo build --locked --release -p tools
	mkdir -p build
	cp $(image) build/tapdom.debug
	strip -o build/tapdom.elf build/tapdom.debug
	cp target/release/boots target/release/agent build/

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTFLAGS="-C force-frame-pointers=yes" cargo clippy --locked --release -p boot --target x86_64-unknown-none -- -D warnings

host:
	cargo test --locked --workspace

boots: build
	$(boots) test

size: build
	size -A build/tapdom.debug | grep -v debug
	ls -l build/tapdom.elf

clean:
	rm -rf target build
