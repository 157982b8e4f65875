//! The scenarios that the simulator plays as well. What is seen here goes to the host, which compares it with the
//! records in the repository.

use anyhow::{Context, Result};
use records::bench::{Bench, FIRST_BYTES, LOWER_BYTES};
use records::{ALL, Record};

use crate::agent::backend::Server;
use crate::agent::bench::RealBench;
use crate::agent::domain;
use crate::agent::lower::Lower;
use crate::agent::reporter::Reporter;
use crate::agent::world::World;
use crate::report::Line;

/// The record that needs a guest of its own.
const DESTROY: &str = "destroy";

/// The loop device below, which no other lower disk has.
const LOOP: usize = 4;

/// A tapdom of its own, with a lower disk whose size and history are those of the records, and dom0 as its client.
pub fn dom0_frontend(world: &mut World<'_>) -> Result<()> {
    let lower = Lower::new(LOOP, LOWER_BYTES >> 20)?;
    lower.partition(FIRST_BYTES >> 20)?;
    let server = Server::start_tapdom("tapdom-records", None, std::slice::from_ref(&lower))?;
    let played = play_all(world, &server, &lower);
    if let Err(error) = played {
        // It goes the way of the failed; its words first.
        world.reporter.detail(&domain::console(&server.name));
        domain::destroy(&server.name)?;
        return Err(error);
    }
    domain::shutdown(&server.name, super::life::SHUTDOWN)?;
    lower.remove()
}

fn play_all(world: &mut World<'_>, server: &Server, lower: &Lower) -> Result<()> {
    for record in ALL.iter().filter(|record| record.name != DESTROY) {
        let reporter = world.reporter;
        play(record, &mut RealBench::dom0(world, server, lower), reporter)?;
    }
    Ok(())
}

/// A guest with a disk of the backend that all others use.
pub fn destroy(world: &mut World<'_>) -> Result<()> {
    let pv2 = world.guest("pv2", "pv", &[])?;
    let reporter = world.reporter;
    let record = Record::named(DESTROY).context("the record")?;
    play(record, &mut RealBench::guest(world, pv2)?, reporter)
}

fn play(record: &Record, bench: &mut dyn Bench, reporter: &Reporter) -> Result<()> {
    let text = record.play(bench).with_context(|| format!("the record {}", record.name))?;
    text.lines().for_each(|line| reporter.say(&Line::Record(record.name.to_owned(), line.to_owned())));
    Ok(())
}
