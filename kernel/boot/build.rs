//! Linker arguments of the image. They are here and not in `.cargo/config.toml` because `RUSTFLAGS` in the environment
//! would replace them there.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=../../linker/domain.ld");
    if var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let here = var("CARGO_MANIFEST_DIR").unwrap();
    println!("cargo::rustc-link-arg-bins=--no-pie");
    println!("cargo::rustc-link-arg-bins=-T{here}/../../linker/domain.ld");
    if !var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().contains("force-frame-pointers") {
        println!("cargo::warning=without -C force-frame-pointers=yes an epitaph has no backtrace (see the Makefile)");
    }
}
