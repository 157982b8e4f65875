//! A backend with several vCPUs: a guest with as many has a ring for each of its own, and each is served.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::backend::{Server, Source, devid};
use crate::agent::domain;
use crate::agent::exercise::Exercise::{Checksum, Cycle, Fio, Load, Progress};
use crate::agent::store;
use crate::agent::tap_ctl::done;
use crate::agent::world::{Side, World};
use crate::report::Backend;

const XVDA: &str = "xvda";

fn xvda() -> String {
    format!("/dev/{XVDA}")
}

/// Files, fio, a disk that is held meanwhile, and a guest that is destroyed under load, on two rings.
pub fn two(world: &mut World<'_>) -> Result<()> {
    ensure!(world.server.kind == Backend::Tapdom, "blkback has no domain of its own here");
    let server = Server::create_tapdom("tapdom-smp", Some(128), &[], &["vcpus=2"])
        .and_then(|()| Server::await_tapdom("tapdom-smp"))?;
    let first = std::mem::replace(&mut world.server, server);
    let went = rings(world);
    let second = std::mem::replace(&mut world.server, first);
    if let Err(error) = went {
        // The second tapdom goes the way of the failed; its words first.
        world.reporter.detail(&domain::console(&second.name));
        domain::destroy(&second.name)?;
        return Err(error);
    }
    second.demand_nothing_left("none")?;
    domain::shutdown(&second.name, super::life::SHUTDOWN)
}

fn rings(world: &mut World<'_>) -> Result<()> {
    let guest = world.wide_guest("smp", 2)?;
    world.attach(guest, XVDA, "rw", Source::Ram(64))?;
    let front = format!("/local/domain/{}/device/vbd/{}", world.id(guest)?, devid(XVDA));
    let queues = store::look(&format!("{front}/multi-queue-num-queues"))?;
    ensure!(queues.as_deref() == Some("2"), "the guest has {queues:?} rings: {}", store::tree(&front));
    world.ask(guest, &Cycle { disk: xvda(), seed: 53, mebibytes: 6 })?;
    world.ask(guest, &Fio { disk: xvda(), seed: 54 })?;
    each_ring_was_used(world)?;
    held(world, guest)?;
    world.ask(guest, &Load { disk: xvda(), seed: 55 })?;
    while world.ask(guest, &Progress)?.parse::<u64>()? < 2 {}
    let took = world.destroy("smp")?;
    world.reporter.detail(&format!("destroyed under load in {} ms", took.as_millis()));
    Ok(())
}

/// STATS tells of both, and the sums are of both.
fn each_ring_was_used(world: &World<'_>) -> Result<()> {
    let text = done(&["--domain", &world.server.name, "stats", "-m", "0"])?;
    let stats: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let rings = stats.pointer("/tapdom/rings").and_then(Value::as_array).context("rings")?;
    let taken = |ring: &Value| ring.pointer("/reqs/0").and_then(Value::as_u64).unwrap_or(0);
    ensure!(rings.len() == 2 && rings.iter().all(|ring| taken(ring) > 0), "not two rings that were used: {text}");
    let operations = ["read", "write", "flush", "discard"];
    let count = |name| stats.pointer(&format!("/tapdom/latency/{name}/count")).and_then(Value::as_u64).unwrap_or(0);
    let (counted, sum) = (operations.map(count).iter().sum::<u64>(), rings.iter().map(taken).sum::<u64>());
    ensure!(counted == sum, "{counted} requests of {sum} are in the sums: {text}");
    world.reporter.detail(&format!("requests by ring: {:?}", rings.iter().map(taken).collect::<Vec<_>>()));
    Ok(())
}

/// A PAUSE waits for all rings, and none is served until the disk goes on.
fn held(world: &mut World<'_>, guest: Side) -> Result<()> {
    let before = world.ask(guest, &Checksum { disk: xvda(), offset: 0, length: 40 << 20 })?;
    for _ in 0..3 {
        done(&["--domain", &world.server.name, "pause", "-m", "0"])?;
        done(&["--domain", &world.server.name, "unpause", "-m", "0"])?;
    }
    let after = world.ask(guest, &Checksum { disk: xvda(), offset: 0, length: 40 << 20 })?;
    ensure!(before == after, "{before} before the disk was held, {after} after");
    Ok(())
}
