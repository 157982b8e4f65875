//! The scenarios, each written once for both worlds.

use anyhow::{Result, ensure};

use crate::bench::{Bench, Outcome, Wish};
use crate::pattern;
use crate::text::Text;

const RAW: Wish = Wish { format: "raw", access: "rw", target: "" };

/// A length that is no multiple of what one request takes, so that the last one is short.
const LENGTH: usize = 300 << 10;

/// A disk of the backend's own memory.
pub fn ram(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { target: "ram:4M", ..RAW })?;
    used(bench, text)?;
    write(bench, text, 0, LENGTH, 1)?;
    read(bench, text, 0, LENGTH, 1)?;
    write(bench, text, (4 << 20) - 4096, 4096, 2)?;
    read(bench, text, (4 << 20) - 4096, 4096, 2)?;
    detach(bench, text)?;
    left(bench, text)
}

/// The second partition of the lower disk.
pub fn partition(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { target: "aio:/dev/xvda2", ..RAW })?;
    used(bench, text)?;
    write(bench, text, 1 << 20, LENGTH, 3)?;
    read(bench, text, 1 << 20, LENGTH, 3)?;
    detach(bench, text)?;
    // sfdisk begins at 1 MiB, and the first partition has 2.
    below(bench, text, 4 << 20, 1 << 20, 3)?;
    left(bench, text)
}

/// The first partition, for reading only.
pub fn read_only(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { access: "r", target: "aio:/dev/xvda1", ..RAW })?;
    used(bench, text)?;
    let before = bench.below(1 << 20, LENGTH)?;
    let (outcome, bytes) = bench.read(0, LENGTH)?;
    text.line(format!("read 0+{LENGTH}: {}, {}", word(outcome), same(bytes == before, "the lower disk")));
    write(bench, text, 0, 4096, 4)?;
    let after = bench.below(1 << 20, LENGTH)?;
    text.line(format!("the lower disk: {}", same(before == after, "before")));
    detach(bench, text)?;
    left(bench, text)
}

/// A disk that the backend does not have.
pub fn wrong_target(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { target: "aio:/dev/xvdo", ..RAW })?;
    bench.refused()?;
    nodes(bench, text, "refused")?;
    detach(bench, text)?;
    left(bench, text)
}

/// A format that makes libxl choose another kind of backend, for which it does not wait.
pub fn wrong_format(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { format: "vhd", target: "/dev/xvda", ..RAW })?;
    bench.refused()?;
    nodes(bench, text, "refused")?;
    detach(bench, text)?;
    left(bench, text)
}

/// What a crash kernel or a driver that is loaded again does.
pub fn reconnect(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { target: "aio:/dev/xvda2", ..RAW })?;
    bench.connected()?;
    write(bench, text, 0, LENGTH, 5)?;
    bench.reconnect()?;
    used(bench, text)?;
    read(bench, text, 0, LENGTH, 5)?;
    detach(bench, text)?;
    left(bench, text)
}

/// The whole lower disk, which becomes larger by half.
pub fn resize(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { target: "aio:/dev/xvda", ..RAW })?;
    bench.connected()?;
    limits(bench, text)?;
    bench.grow(12 << 20)?;
    text.line("the lower disk has 12 MiB");
    used(bench, text)?;
    write(bench, text, 8 << 20, LENGTH, 6)?;
    read(bench, text, 8 << 20, LENGTH, 6)?;
    detach(bench, text)?;
    below(bench, text, 8 << 20, 8 << 20, 6)?;
    left(bench, text)
}

/// A guest that dies with requests under way.
pub fn destroy(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    attach(bench, text, &Wish { target: "aio:/dev/xvdd", ..RAW })?;
    bench.connected()?;
    nodes(bench, text, "connected")?;
    bench.load()?;
    let content = bench.destroy()?;
    text.line(format!("xl destroy in the middle of writes: {}", ok(content)));
    left(bench, text)
}

fn attach(bench: &mut dyn Bench, text: &mut Text, wish: &Wish) -> Result<()> {
    let content = bench.attach(wish)?;
    let Wish { format, access, target } = wish;
    text.line(format!("xl block-attach format={format},access={access},target={target}: {}", ok(content)));
    Ok(())
}

fn detach(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    let content = bench.detach()?;
    text.line(format!("xl block-detach: {}", ok(content)));
    Ok(())
}

/// Once connected: the nodes, and what the kernel makes of the disk.
fn used(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    bench.connected()?;
    nodes(bench, text, "connected")?;
    limits(bench, text)
}

/// At the end: the nodes, what the backend holds, and what every node went through.
fn left(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    nodes(bench, text, "at the end")?;
    text.line(format!("the backend holds: {}", if bench.held()? { "something" } else { "nothing" }));
    let (ids, changes) = (bench.ids(), bench.history()?);
    text.history(ids, &changes);
    Ok(())
}

fn nodes(bench: &mut dyn Bench, text: &mut Text, when: &str) -> Result<()> {
    let ids = bench.ids();
    let mut all = Vec::new();
    for (_, directory) in crate::text::directories(ids) {
        all.extend(bench.nodes(&directory)?);
    }
    text.nodes(ids, when, &all);
    Ok(())
}

fn limits(bench: &mut dyn Bench, text: &mut Text) -> Result<()> {
    text.line("the guest's kernel:");
    for (name, value) in bench.limits()? {
        text.line(format!("  {name} = {value}"));
    }
    Ok(())
}

fn write(bench: &mut dyn Bench, text: &mut Text, offset: u64, length: usize, seed: u64) -> Result<()> {
    let mut bytes = vec![0; length];
    pattern::fill(seed, offset, &mut bytes);
    let outcome = bench.write(offset, &bytes)?;
    text.line(format!("write {offset}+{length}: {}", word(outcome)));
    Ok(())
}

fn read(bench: &mut dyn Bench, text: &mut Text, offset: u64, length: usize, seed: u64) -> Result<()> {
    let (outcome, bytes) = bench.read(offset, length)?;
    ensure!(outcome != Outcome::Done || bytes.len() == length, "{} bytes read, not {length}", bytes.len());
    let right = pattern::difference(seed, offset, &bytes).is_none();
    text.line(format!("read {offset}+{length}: {}, {}", word(outcome), same(right, "written")));
    Ok(())
}

/// The lower disk has at `at` what was written at `offset`.
fn below(bench: &mut dyn Bench, text: &mut Text, at: u64, offset: u64, seed: u64) -> Result<()> {
    let right = pattern::difference(seed, offset, &bench.below(at, LENGTH)?).is_none();
    text.line(format!("the lower disk {at}+{LENGTH}: {}", same(right, &format!("written at {offset}"))));
    Ok(())
}

fn ok(content: bool) -> &'static str {
    if content { "ok" } else { "failed" }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Forbidden => "refused by the guest's own kernel",
        Outcome::Failed => "answered with an error",
    }
}

fn same(same: bool, what: &str) -> String {
    format!("{} {what}", if same { "as" } else { "not as" })
}
