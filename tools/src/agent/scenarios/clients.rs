//! Other clients of the control plane on real Xen: libxenvchan with raw messages, tapdisk's socket, and xenio, which
//! connects guests by messages.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::control::demand;
use crate::agent::exercise::Exercise::{Appear, Expect, Vanish, Write};
use crate::agent::process::run;
use crate::agent::store;
use crate::agent::system::wait_for_path;
use crate::agent::tap_ctl::{Daemon, Vbd3, asked, done};
use crate::agent::world::World;

/// A message and its answer take a few milliseconds, also under emulation.
const RAW: Duration = Duration::from_secs(60);

/// A handshake of three, each of whom waits for the others.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Raw messages of both dialects, made by a program of its own, over libxenvchan.
pub fn raw(world: &mut World<'_>) -> Result<()> {
    let id = world.server.id;
    for (dialect, channel) in [("blktap", "data/tapdisk"), ("rfc", "data/tapdisk-rfc")] {
        let socket = format!("/run/raw-{dialect}");
        let proxy = Daemon::proxy(id, channel, &socket)?;
        for question in ["pid", "check", "pid"] {
            let said = run(&[&format!("raw-messages-{dialect}"), question, &socket, &id.to_string()], RAW)?;
            world.reporter.step(format!("{dialect}, {question}: {}", said.trim()));
        }
        drop(proxy);
        fs::remove_file(&socket)?;
    }
    Ok(())
}

/// So many disks are more than a toolstack will ask for; xenstore has a part in none of them.
const MANY: usize = 300;

/// Many disks in memory: listed whole, told of whole.
pub fn many(world: &mut World<'_>) -> Result<()> {
    let (id, socket, many) = (world.server.id, "/run/raw-many", MANY.to_string());
    let proxy = Daemon::proxy(id, "data/tapdisk", socket)?;
    let started = Instant::now();
    run(&["raw-messages-blktap", "open", socket, &many], RAW)?;
    let opened = started.elapsed();
    let listed = done(&["list"])?;
    let told = started.elapsed();
    let wanted: String = (0..MANY).map(|minor| format!("pid={id} minor={minor} state=0 args=ram:16K\n")).collect();
    demand(&listed, &wanted, "the list of many")?;
    let text = done(&["stats", "-m", "65535"])?;
    let stats: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let minors: Vec<Option<u64>> =
        stats.iter().map(|one| one.pointer("/tapdom/minor").and_then(Value::as_u64)).collect();
    ensure!(minors == (0..MANY as u64).map(Some).collect::<Vec<_>>(), "the statistics' minors: {minors:?}");
    let memory = stats[MANY - 1].pointer("/tapdom/domain_memory_bytes").context("no domain_memory_bytes")?;
    world.reporter.step(format!(
        "{MANY} disks of 16 KiB: {} bytes of list, {} of statistics; memory in use and in all, in bytes: {memory}",
        listed.len(),
        text.len()
    ));
    let asked = started.elapsed();
    run(&["raw-messages-blktap", "close", socket, &many], RAW)?;
    world
        .reporter
        .detail(&format!("opened {opened:?}, listed {told:?}, told {asked:?}, closed {:?}", started.elapsed()));
    drop(proxy);
    fs::remove_file(socket)?;
    demand(&done(&["list"])?, &format!("pid={id}\n"), "the list when all are gone")
}

/// The commands of tap-ctl over tapdisk's own socket.
pub fn serve(world: &mut World<'_>) -> Result<()> {
    let id = world.server.id;
    let daemon = Daemon::start(&["serve"])?;
    let socket = format!("/run/blktap-control/ctl{id}");
    wait_for_path(&socket, RAW)?;
    let over = |words: &[&str]| done(&[&["--socket", &socket], words].concat());
    demand(&over(&["list"])?, &format!("pid={id}\n"), "the list of a fresh domain")?;
    over(&["attach", "-p", &id.to_string(), "-m", "5"])?;
    over(&["open", "-m", "5", "-a", "ram:1M"])?;
    demand(&over(&["info", "-m", "5"])?, "sectors=2048 sector-size=512 info=0\n", "info")?;
    over(&["pause", "-m", "5"])?;
    demand(&done(&["list"])?, &format!("pid={id} minor=5 state=0x2a args=ram:1M\n"), "the list over the vchan")?;
    over(&["unpause", "-m", "5"])?;
    let text = over(&["stats", "-m", "5"])?;
    let stats: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    ensure!(stats.pointer("/tapdom/minor") == Some(&Value::from(5)), "{text}");
    // A path follows the message; it is passed on, and the domain refuses what it announces.
    over(&["close", "-m", "5"])?;
    let said = asked(&["--socket", &socket, "open", "-m", "5", "-a", "ram:1M", "-C", "/log"])?;
    ensure!(said.code == Some(95) && said.err.contains("ADD_LOG: not offered"), "open with a log: {said:?}");
    over(&["detach", "-m", "5"])?;
    demand(&over(&["list"])?, &format!("pid={id}\n"), "the list at the end")?;
    drop(daemon);
    // It was killed, so its socket is left over.
    fs::remove_file(&socket).with_context(|| format!("removing {socket}"))
}

/// A guest whose handshake is done by xenio in dom0, and whose ring tapdom serves by message.
pub fn xenio(world: &mut World<'_>) -> Result<()> {
    let pv = world.guest("pv", "pv", &[])?;
    let daemon = Daemon::start(&["xenio"])?;
    demand(
        &done(&["create", "-a", "aio:/dev/xvdc"])?.replace("/run/blktap-control/tapdisk/tapdisk-", ""),
        "0\n",
        "create",
    )?;
    let xvdd = || "/dev/xvdd".to_owned();
    let disk = Vbd3 { storage: world.server.id, minor: 0, guest: world.id(pv)?, devid: 51760, mode: "w" };
    for round in 0..2 {
        disk.make()?;
        world.ask(pv, &Appear { disk: xvdd() })?;
        if round == 0 {
            world.ask(pv, &Write { disk: xvdd(), offset: 0, length: 8 << 20, seed: 171 })?;
        }
        world.ask(pv, &Expect { disk: xvdd(), offset: 0, length: 8 << 20, seed: 171 })?;
        let text = done(&["stats", "-m", "0"])?;
        let stats: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        ensure!(stats.pointer("/xenbus/devid") == Some(&Value::from(disk.devid)), "no ring of the guest: {text}");
        disk.close()?;
        let state = format!("{}/state", disk.backend());
        store::wait_for(&state, "xenio lets go", HANDSHAKE, |value| value == Some("6"))?;
        disk.remove()?;
        world.ask(pv, &Vanish { disk: xvdd() })?;
    }
    demand(&done(&["destroy", "-m", "0"])?, "", "destroy")?;
    let left = store::tree("/local/domain/0/backend/vbd3");
    ensure!(!left.contains("state"), "left in xenstore: {left}");
    drop(daemon);
    Ok(())
}
