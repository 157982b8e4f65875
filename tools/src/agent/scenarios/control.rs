//! The control plane on real Xen: tap-ctl in dom0, over the vchan, and the disks that it makes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::backend::Source;
use crate::agent::exercise::Exercise::{Expect, Fio, Write};
use crate::agent::load::{DEPTH, Load};
use crate::agent::process::run;
use crate::agent::tap_ctl::{Daemon, asked, done};
use crate::agent::world::{Side, World};

/// `state` of LIST.
const PAUSED: &str = "0x2a";

const XVDA: &str = "/dev/xvda";

/// A message and its answer take a few milliseconds, also under emulation.
const RAW: Duration = Duration::from_secs(60);

/// The folder in which tap-ctl sets minors apart.
const MARKERS: &str = "/run/blktap-control/tapdisk/tapdisk-";

/// A disk's whole life by commands, with dom0's blkfront attached to it by xl.
pub fn life(world: &mut World<'_>) -> Result<()> {
    let id = world.server.id;
    let nobody = format!("pid={id}\n");
    demand(&done(&["list"])?, &nobody, "the list of a fresh domain")?;
    let said = asked(&["pause", "-m", "3"])?;
    let refused = format!("tap-ctl: tapdom (domain {id}), minor 3: pause: minor 3: no such minor");
    ensure!(said.code == Some(19) && said.words() == refused, "pause without a VBD: {said:?}");
    for (minor, image, sectors) in [(0, "ram:4M", 8192), (1, "aio:/dev/xvdd", 131_072)] {
        demand(&done(&["create", "-a", image])?, &format!("{MARKERS}{minor}\n"), "create")?;
        let info = format!("sectors={sectors} sector-size=512 info=0\n");
        demand(&done(&["info", "-m", &minor.to_string()])?, &info, image)?;
    }
    let both = format!("pid={id} minor=0 state=0 args=ram:4M\npid={id} minor=1 state=0 args=aio:/dev/xvdd\n");
    demand(&done(&["list"])?, &both, "the list of both")?;
    world.attach(Side::Dom0, "xvda", "rw", Source::Minor(1))?;
    world.ask(Side::Dom0, &Fio { disk: XVDA.to_owned(), seed: 141 })?;
    demand_traffic(world)?;
    world.detach(Side::Dom0, "xvda")?;
    for minor in ["0", "1"] {
        demand(&done(&["destroy", "-m", minor])?, "", "destroy")?;
    }
    demand(&done(&["list"])?, &nobody, "the list when all is destroyed")
}

/// STATS tells what fio did, and what trace tells of a write is that write.
fn demand_traffic(world: &mut World<'_>) -> Result<()> {
    let text = done(&["stats", "-m", "1"])?;
    let stats: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let number = |path: &str| stats.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path}: {text}"));
    // fio writes 44 MiB and reads them again.
    let sectors = (44 << 20) / 512;
    let (read, written) = (number("/secs/0")?, number("/secs/1")?);
    ensure!(written >= sectors && read >= sectors, "{read} sectors read, {written} written: {text}");
    let (taken, answered) = (number("/xenbus/reqs/0")?, number("/xenbus/reqs/1")?);
    ensure!(taken == answered && taken > 0, "{taken} requests taken, {answered} answered: {text}");
    let counted = number("/tapdom/latency/read/count")? + number("/tapdom/latency/write/count")?;
    ensure!(counted <= taken && counted > 0, "{counted} latencies of {taken} requests: {text}");
    ensure!(number("/tapdom/minor")? == 1 && number("/reqs_outstanding")? == 0, "{text}");
    world.reporter.step(format!("stats of fio: {read} sectors read, {written} written, {taken} requests"));
    let trace = std::thread::spawn(|| done(&["trace", "-m", "1", "-i", "3", "-n", "2"]));
    // One write a tenth of a second, until the second look has been taken.
    let mut seed = 0;
    while !trace.is_finished() {
        seed += 1;
        world.ask(Side::Dom0, &Write { disk: XVDA.to_owned(), offset: 0, length: 1 << 20, seed })?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let trace = trace.join().map_err(|_| anyhow::anyhow!("the thread of trace panicked"))??;
    let looks: Vec<&str> = trace.lines().collect();
    ensure!(looks.len() == 2 && looks[0] == "minor=1 state=0 args=aio:/dev/xvdd", "{trace:?}");
    let sectors = looks[1].split([' ', '=', ',']).nth(4).and_then(|written| written.parse::<u64>().ok());
    ensure!(sectors.is_some_and(|sectors| sectors >= 2048), "trace saw no write: {trace:?}");
    world.reporter.detail(&trace);
    Ok(())
}

/// PAUSE under load, the image exchanged under it, CLOSE under load.
pub fn pause(world: &mut World<'_>) -> Result<()> {
    const SEED: u64 = 151;
    demand(&done(&["create", "-a", "aio:/dev/xvdc"])?, &format!("{MARKERS}0\n"), "create")?;
    world.attach(Side::Dom0, "xvda", "rw", Source::Minor(0))?;
    let load = Load::begin(XVDA, SEED)?;
    load.await_more(10 * DEPTH)?;
    done(&["pause", "-m", "0"])?;
    let paused = Instant::now();
    let listed = done(&["list", "-m", "0"])?;
    ensure!(listed.contains(PAUSED), "paused: {listed}");
    // Whoever waits has been told of at most one more request that was done before.
    let held = load.moments().iter().filter(|moment| **moment > paused).count();
    ensure!(held <= DEPTH, "{held} requests were done after the pause");
    world.lower[2].copy_to(&world.lower[3])?;
    done(&["unpause", "-m", "0", "-a", "aio:/dev/xvdd"])?;
    load.await_more(10 * DEPTH)?;
    let requests = load.end()?;
    world.reporter.detail(&format!("{requests} requests before and after the pause"));
    world.ask(Side::Dom0, &Write { disk: XVDA.to_owned(), offset: 40 << 20, length: 1 << 20, seed: SEED })?;
    world.look_below(3, |disk| Expect { disk, offset: 40 << 20, length: 1 << 20, seed: SEED })?;
    world.detach(Side::Dom0, "xvda")?;
    done(&["destroy", "-m", "0"]).map(drop)
}

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
    run(&["raw-messages-blktap", "open", socket, &many], RAW)?;
    let listed = done(&["list"])?;
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
    run(&["raw-messages-blktap", "close", socket, &many], RAW)?;
    drop(proxy);
    fs::remove_file(socket)?;
    demand(&done(&["list"])?, &format!("pid={id}\n"), "the list when all are gone")
}

fn demand(said: &str, wanted: &str, what: &str) -> Result<()> {
    ensure!(said == wanted, "{what}: {said:?}, not {wanted:?}");
    Ok(())
}
