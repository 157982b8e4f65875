//! A boot for figures that are no requests: how long tapdom and its disks take to be of use, and in what memory. See
//! docs/bench.md.

use std::fs;

use anyhow::{Context, Result};

use super::bench::Ground;
use super::bench::counts::{TAPDOM, THREE};
use crate::footprint::Figures;
use crate::report::Task;

/// The machine's memory, in mebibytes: for a guest with very many disks.
const MEMORY: u32 = 4096;

/// Boots and measures, with so many disks attached at once, and says through `say` how it goes.
pub fn run(ground: &Ground<'_>, many: u32, say: impl Fn(&str)) -> Result<Figures> {
    let counted = ground.counted("footprint", Task::Footprint { many }, THREE, MEMORY, say)?;
    let mut figures = Figures::default();
    figures.note("many", f64::from(many));
    counted.records.of("figure").try_for_each(|text| figures.hear(text))?;
    // The first two phases are tapdom's starts.
    for phase in counted.phases.iter().take(2) {
        figures.note("offered_own", phase.processors[TAPDOM].instructions as f64);
    }
    let domain = ground.domain;
    let image = fs::metadata(domain).with_context(|| format!("{}", domain.display()))?.len();
    figures.note("image_bytes", image as f64);
    Ok(figures)
}
