//! The table of the benchmark, and the goals beside it.

use std::fmt::Write;

use super::counts::{DOM0, GUEST, TAPDOM};
use super::symbols::Symbols;
use super::{Measured, Outcome};
use crate::footprint::verdict;
use crate::workload::{COPY, MAP, Operation, Peer, SEND, Workload};

const HEAD: &str = "\
| load | backend | us | tapdom | dom0 | guest | strings | hypercalls | copies | maps | events | counted |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// One line for each load on each disk, the loads together.
pub fn of(outcome: &Outcome) -> String {
    let mut rows: Vec<&Measured> = outcome.measured.iter().collect();
    rows.sort_by_key(|measured| {
        let place = Workload::all().iter().position(|workload| *workload == measured.workload);
        (place, measured.peer)
    });
    let mut text = HEAD.to_owned();
    rows.iter().for_each(|measured| row(measured, &outcome.symbols, &mut text));
    text
}

fn row(measured: &Measured, symbols: &Symbols, text: &mut String) {
    let requests = f64::from(measured.workload.requests());
    let per = |count: u64| count as f64 / requests;
    let processors = &measured.phase.processors;
    let three = |of: fn(&super::counts::Processor) -> u64, digits: usize| {
        [TAPDOM, DOM0, GUEST].map(|at| format!("{:.digits$}", per(of(&processors[at])))).join(" / ")
    };
    let calls = |names: &[&str]| {
        let addresses: Vec<u64> = names.iter().filter_map(|name| symbols.xen(name)).collect();
        let sum = |at: usize| addresses.iter().map(|address| processors[at].calls(*address)).sum();
        [TAPDOM, DOM0, GUEST].map(|at| format!("{:.2}", per(sum(at)))).join(" / ")
    };
    let _ = writeln!(
        text,
        "| {} | {} | {:.1} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} | {} | {:.3} |",
        measured.workload,
        measured.peer.word(),
        per(measured.ns) / 1000.0,
        per(processors[TAPDOM].instructions),
        per(processors[DOM0].instructions),
        per(processors[GUEST].instructions),
        three(|processor| processor.strings, 0),
        three(|processor| processor.hypercalls, 2),
        calls(COPY),
        calls(MAP),
        calls(SEND),
        measured.phase.instructions() as f64 / measured.ns as f64,
    );
}

/// What several vCPUs are worth: of each load, what the busiest of tapdom's executes for a request. The time that a backend
/// takes where it is the narrowest place is that of its busiest vCPU.
pub fn vcpus(outcome: &Outcome) -> String {
    let peers = [Peer::TapdomRam, Peer::TapdomTwo, Peer::TapdomFour];
    let mut text = String::from(
        "| busiest vCPU of tapdom, instructions for a request | 1 | 2 | 4 | 1 over 2 | 1 over 4 |\n|---|---|---|---|---|---|\n",
    );
    for workload in Workload::all() {
        let busiest = |peer| {
            let measured = outcome.measured.iter().find(|it| (it.peer, it.workload) == (peer, workload))?;
            let most = measured.phase.of_tapdom.values().max()?;
            Some(*most as f64 / f64::from(workload.requests()))
        };
        if let [Some(one), Some(two), Some(four)] = peers.map(busiest) {
            let (halves, quarters) = (one / two, one / four);
            let _ = writeln!(text, "| {workload} | {one:.0} | {two:.0} | {four:.0} | {halves:.2} | {quarters:.2} |");
        }
    }
    text
}

/// A goal: a figure of tapdom over another, or by itself.
struct Goal {
    what: &'static str,
    goal: f64,
    /// None where the issue names none.
    floor: Option<f64>,
    figure: fn(&Figures<'_>) -> Option<f64>,
}

/// What is measured, by disk and load.
struct Figures<'a>(&'a [Measured]);

impl Figures<'_> {
    fn find(&self, peer: Peer, bytes: u32, depth: u32) -> Option<&Measured> {
        let wanted = Workload { bytes, operation: Operation::Read, depth, disks: 1 };
        self.0.iter().find(|measured| measured.peer == peer && measured.workload == wanted)
    }

    /// Instructions of tapdom's processor and dom0's, per read.
    fn backend(&self, peer: Peer, bytes: u32, depth: u32) -> Option<f64> {
        let measured = self.find(peer, bytes, depth)?;
        let [dom0, tapdom] = [DOM0, TAPDOM].map(|at| measured.phase.processors[at].instructions);
        Some((dom0 + tapdom) as f64 / f64::from(measured.workload.requests()))
    }

    fn tapdom(&self, peer: Peer, of: fn(&super::counts::Processor) -> u64) -> Option<f64> {
        let measured = self.find(peer, 4096, 32)?;
        Some(of(&measured.phase.processors[TAPDOM]) as f64 / f64::from(measured.workload.requests()))
    }

    fn whole(&self, peer: Peer) -> Option<f64> {
        let measured = self.find(peer, 4096, 32)?;
        Some(measured.ns as f64 / f64::from(measured.workload.requests()))
    }
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    Some(ours? / theirs?)
}

const GOALS: &[Goal] = &[
    Goal {
        what: "backend per 4 KiB read, depth 32, RAM: of blkback with persistent grants",
        goal: 0.35,
        floor: Some(0.60),
        figure: |all| ratio(all.backend(Peer::TapdomRam, 4096, 32), all.backend(Peer::Blkback, 4096, 32)),
    },
    Goal {
        what: "the same of qdisk",
        goal: 0.04,
        floor: None,
        figure: |all| ratio(all.backend(Peer::TapdomRam, 4096, 32), all.backend(Peer::Qdisk, 4096, 32)),
    },
    Goal {
        what: "the same at depth 1: of blkback",
        goal: 0.55,
        floor: Some(0.80),
        figure: |all| ratio(all.backend(Peer::TapdomRam, 4096, 1), all.backend(Peer::Blkback, 4096, 1)),
    },
    Goal {
        what: "backend per 1 MiB sequential read, RAM: of blkback with persistent grants",
        goal: 0.50,
        floor: Some(0.80),
        figure: |all| ratio(all.backend(Peer::TapdomRam, 1 << 20, 4), all.backend(Peer::Blkback, 1 << 20, 4)),
    },
    Goal {
        what: "whole machine per 4 KiB read, depth 32, RAM: of blkback",
        goal: 0.83,
        floor: Some(0.95),
        figure: |all| ratio(all.whole(Peer::TapdomRam), all.whole(Peer::Blkback)),
    },
    Goal {
        what: "tapdom's own instructions per 4 KiB read, depth 32, over the lower disk",
        goal: 2000.0,
        floor: Some(3500.0),
        figure: |all| all.tapdom(Peer::TapdomAio, |processor| processor.instructions),
    },
    Goal {
        what: "hypercalls of tapdom per 4 KiB read, depth 32, RAM",
        goal: 0.1,
        floor: Some(0.3),
        figure: |all| all.tapdom(Peer::TapdomRam, |processor| processor.hypercalls),
    },
    Goal {
        what: "hypercalls of tapdom per 4 KiB read, depth 32, over the lower disk",
        goal: 0.1,
        floor: Some(0.3),
        figure: |all| all.tapdom(Peer::TapdomAio, |processor| processor.hypercalls),
    },
];

/// The goals of which the figures were measured.
pub fn goals(outcome: &Outcome) -> String {
    let mut text = String::from("| what | measured | goal | floor | |\n|---|---|---|---|---|\n");
    let all = Figures(&outcome.measured);
    for Goal { what, goal, floor, figure } in GOALS {
        let Some(figure) = figure(&all) else { continue };
        let verdict = verdict(figure, *goal, floor.unwrap_or(*goal));
        let floor = floor.map_or(String::new(), |floor| floor.to_string());
        let digits = if *goal > 10.0 { 0 } else { 3 };
        let _ = writeln!(text, "| {what} | {figure:.digits$} | {goal} | {floor} | {verdict} |");
    }
    text
}

/// How far two runs of the same build are apart: the widest difference of each column, in percent, and where.
pub fn difference(one: &Outcome, other: &Outcome) -> String {
    let figures = |measured: &Measured| {
        let at = |processor: usize| measured.phase.processors[processor].instructions as f64;
        [("us", measured.ns as f64), ("tapdom", at(TAPDOM)), ("dom0", at(DOM0)), ("guest", at(GUEST))]
    };
    let mut widest: [(&str, f64, String); 4] = Default::default();
    for (a, b) in one.measured.iter().zip(&other.measured) {
        for ((widest, (name, a_figure)), (_, b_figure)) in widest.iter_mut().zip(figures(a)).zip(figures(b)) {
            let base = a_figure.max(b_figure);
            // A processor that has nothing to do with a disk does some housekeeping now and then.
            let by = if base > 0.01 * a.ns as f64 { (a_figure - b_figure).abs() / base * 100.0 } else { 0.0 };
            if by >= widest.1 {
                *widest = (name, by, format!("{}, {}", a.workload, a.peer.word()));
            }
        }
    }
    widest.iter().map(|(name, by, place)| format!("{name}: at most {by:.2} % apart ({place})\n")).collect()
}
