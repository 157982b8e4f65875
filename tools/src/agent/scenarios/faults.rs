//! Wishes that cannot be granted: the answer must come, name the thing, and hurt nobody else.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::backend::{Server, Source, devid};
use crate::agent::domain::XL;
use crate::agent::exercise::Exercise::{Expect, Write};
use crate::agent::process::{Said, ask, run};
use crate::agent::store;
use crate::agent::world::{Side, World};

/// The error text comes at once; libxl's own wait is 10 s.
const TEXT: Duration = Duration::from_secs(5);

/// A target that cannot be served, and what the error text must name.
struct Wrong {
    vdev: &'static str,
    target: String,
    names: &'static str,
}

/// All at once, because libxl waits 10 s for each.
pub fn wrong_targets(world: &mut World<'_>) -> Result<()> {
    let wrongs = [
        Wrong { vdev: "xvde", target: "floppy:/dev/xvda".to_owned(), names: "floppy" },
        Wrong { vdev: "xvdf", target: "aio:/dev/xvdo".to_owned(), names: "xvdo" },
        Wrong { vdev: "xvdg", target: "ram:99999999999999999999M".to_owned(), names: "99999999999999999999M" },
        Wrong { vdev: "xvdh", target: "aio:/dev/\u{1}\u{1b}[31mx".to_owned(), names: "[31mx" },
        Wrong { vdev: "xvdi", target: format!("aio:/dev/{}", "x".repeat(1500)), names: "xxxx" },
    ];
    let server = &world.server;
    let attempts: Vec<Result<Said>> = thread::scope(|scope| {
        let running: Vec<_> = wrongs.iter().map(|wrong| scope.spawn(|| attach(server, wrong))).collect();
        running.into_iter().map(|attempt| attempt.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))).collect()
    });
    for (wrong, attempt) in wrongs.iter().zip(attempts) {
        let said = attempt?;
        ensure!(!said.ok(), "xl block-attach of {:?} went well", wrong.target);
        let text = demand_text(server, "vbd", wrong.vdev, wrong.names)?;
        world.reporter.detail(&format!("{:?}: {text}", wrong.target));
        clear(wrong.vdev)?;
    }
    // A node takes 2048 bytes, so this one fails before tapdom hears of it; it must leave nothing all the same.
    let endless = Wrong { vdev: "xvdj", target: format!("aio:/dev/{}", "x".repeat(10_000)), names: "" };
    let said = attach(server, &endless)?;
    ensure!(!said.ok(), "xl block-attach with a target of 10 KB went well");
    world.reporter.detail(&format!("a target of 10 KB: {}", said.words()));
    // libxl 4.17 leaves nodes that it cannot read back itself, so xl block-detach fails and only their removal helps.
    // tapdom then sees a directory without a target, and sees it vanish.
    let number = devid(endless.vdev);
    store::remove(&format!("/local/domain/{}/backend/vbd/0/{number}", server.id))?;
    store::remove(&format!("/local/domain/0/device/vbd/{number}"))?;
    store::remove(&format!("/libxl/0/device/vbd/{number}"))?;
    still_serves(world)
}

/// `format=vhd` makes the toolstack choose the kind qdisk, and libxl then waits for nothing: only the text tells.
pub fn qdisk_kind(world: &mut World<'_>) -> Result<()> {
    let spec = format!("format=vhd,vdev=xvde,access=rw,backend={},target=/dev/xvda", world.server.name);
    run(&["xl", "block-attach", "0", &spec], XL)?;
    let text = demand_text(&world.server, "qdisk", "xvde", "VHD")?;
    world.reporter.detail(&format!("qdisk with vhd: {text}"));
    clear("xvde")?;
    still_serves(world)
}

fn attach(server: &Server, wrong: &Wrong) -> Result<Said> {
    let spec = format!("format=raw,vdev={},access=rw,backend={},target={}", wrong.vdev, server.name, wrong.target);
    ask(&["xl", "block-attach", "0", &spec], XL)
}

fn demand_text(server: &Server, kind: &str, vdev: &str, names: &str) -> Result<String> {
    let text = server.error_text(kind, 0, devid(vdev), TEXT)?;
    ensure!(text.contains(names), "the error text does not name {names:?}: {text:?}");
    ensure!(!text.chars().any(char::is_control), "the error text carries control characters: {text:?}");
    let node = format!("/local/domain/{}/backend/{kind}/0/{}/hotplug-error", server.id, devid(vdev));
    let hotplug = store::look(&node)?.with_context(|| format!("{node} is not there"))?;
    ensure!(hotplug.contains(names), "hotplug-error does not name {names:?}: {hotplug:?}");
    Ok(text)
}

/// A failed attach leaves its directories, as it does with any backend; the user's next word is detach.
fn clear(vdev: &str) -> Result<()> {
    let front = format!("/libxl/0/device/vbd/{}", devid(vdev));
    if store::look(&front)?.is_none() {
        return Ok(());
    }
    run(&["xl", "block-detach", "0", vdev], XL).map(drop)
}

fn still_serves(world: &mut World<'_>) -> Result<()> {
    let disk = || "/dev/xvda".to_owned();
    world.attach(Side::Dom0, "xvda", "rw", Source::Disk(3))?;
    world.ask(Side::Dom0, &Write { disk: disk(), offset: 0, length: 1 << 20, seed: 131 })?;
    world.ask(Side::Dom0, &Expect { disk: disk(), offset: 0, length: 1 << 20, seed: 131 })?;
    world.detach(Side::Dom0, "xvda")
}
