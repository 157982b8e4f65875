//! Guests that keep every rule: each gets every answer, every byte is right, and when they have gone nothing is left.
//!
//! On every third machine things happen that are nobody's fault and that nobody is to notice. On every third a few
//! requests fail below for a while: no more are to fail above.

use std::time::Duration;

use xen::port::DomId;

use crate::blkif::{Layout, SECTOR};
use crate::disk::Model;
use crate::fault::{self, Fault};
use crate::frontend::{Options, Style, Workload};
use crate::gpt;
use crate::marks;
use crate::run::DRIVER;
use crate::stage::{Guest, Stage};
use crate::toolstack::Vbd;
use crate::worlds::Report;

/// Sectors of a partition.
const PART: u64 = 1024;
/// Where the first begins.
const FIRST: u64 = 64;
/// The number that a guest has on the other side of a migration.
const MIGRATED: DomId = DomId(30);

/// Plays it.
pub fn play(seed: u64) -> Report {
    let parts = seed.is_multiple_of(2);
    let mut stage = Stage::with_lower(seed, FIRST + 2 * PART + 64);
    if parts {
        gpt::write(&mut stage.disk().borrow_mut(), &[(FIRST, PART), (FIRST + PART, PART)]);
    }
    if stage.run.random.one_in(3) {
        fault::some(&stage.run.world, &mut stage.run.random, &Fault::HARMLESS);
    }
    let mut guests = guests(&mut stage, parts);
    let mut report = Report::default();
    for guest in &guests {
        stage.attach(guest);
        shape(guest);
        work(&mut stage, guest);
    }
    let mover = stage.run.random.index(guests.len());
    move_on(&mut stage, &mut guests[mover], &mut report);
    if stage.run.random.one_in(3) {
        fail_some(&mut stage, &guests);
    }
    stage.run.world.faults().end();
    for guest in &guests {
        stage.run.at_rest(&guest.front);
        stage.verify(guest);
        stage.detach(guest);
        report.guest(&guest.front.borrow().tally);
    }
    stage.assert_clean();
    report.add(&Report::of(&stage.run));
    report
}

/// One to three, on memory, on the lower disk or on its partitions.
fn guests(stage: &mut Stage, parts: bool) -> Vec<Guest> {
    let mut guests = Vec::new();
    if stage.run.random.one_in(2) {
        guests.push(stage.on_ram(DomId(5), PART));
    }
    for part in if parts { 1..3 } else { 0..1 } {
        let id = DomId(6 + part as u16);
        guests.push(if parts { on_part(stage, id, part) } else { stage.on_lower(id) });
    }
    for guest in &guests {
        let mut front = guest.front.borrow_mut();
        let random = &mut stage.run.random;
        let style = random.pick(&[Style::Linux, Style::Linux, Style::Ovmf, Style::Grub, Style::Resumed]);
        front.options = Options { style, ..Options::any(random) };
    }
    guests
}

fn on_part(stage: &mut Stage, id: DomId, part: u64) -> Guest {
    let at = (FIRST + (part - 1) * PART) as usize * SECTOR;
    let model = Model::of(&stage.disk().borrow().bytes()[at..at + PART as usize * SECTOR]);
    stage.guest(Vbd::new(DRIVER, id, &format!("aio:/dev/xvda{part}")), &model)
}

/// Notes how it came and what its ring is like.
fn shape(guest: &Guest) {
    let front = guest.front.borrow();
    let Options { style, layout, .. } = front.options;
    marks::hit(match style {
        Style::Linux => "Linux connects",
        Style::Ovmf => "OVMF jumps to Connected",
        Style::Grub => "GRUB jumps and waits for us to leave Closed",
        Style::Resumed => "resumed, from nothing to Initialised",
    });
    marks::hit(match layout {
        Layout::X86_64 => "laid out by x86_64",
        Layout::X86_32 => "laid out by x86_32",
    });
    marks::hit(match front.ring_pages() {
        1 => "a ring of 1 page",
        2 => "a ring of 2 pages",
        4 => "a ring of 4 pages",
        8 => "a ring of 8 pages",
        _ => "a ring of 16 pages",
    });
    if front.segments_max() > crate::blkif::SEGMENTS_MAX {
        marks::hit("indirect requests");
    }
}

/// Few at once as often as many: a wake-up that is lost among many is made good by the next.
fn work(stage: &mut Stage, guest: &Guest) {
    let depth = stage.run.random.pick(&[1, 1, 1, 2, 4, 32, 64]);
    let sectors_max = stage.run.random.pick(&[8, 88, 256]);
    guest.front.borrow_mut().work(Workload { depth, sectors_max, flushes: 10, ..Workload::mixed(50) });
}

/// Some requests fail: each fault costs one request, and what was not answered well may be there or not.
fn fail_some(stage: &mut Stage, guests: &[Guest]) {
    let failed = |stage: &Stage| {
        let faults = stage.run.world.faults();
        Fault::FAILING.into_iter().map(|fault| faults.injected(fault)).sum::<u32>()
    };
    guests.iter().for_each(|guest| guest.front.borrow_mut().options.errors = true);
    fault::some(&stage.run.world, &mut stage.run.random, &Fault::FAILING);
    for guest in guests {
        stage.run.at_rest(&guest.front);
        work(stage, guest);
    }
    guests.iter().for_each(|guest| stage.run.at_rest(&guest.front));
    stage.run.world.faults().end();
    let mut told = 0;
    for guest in guests {
        let mut front = guest.front.borrow_mut();
        told += front.tally.errors + front.tally.unsupported;
        front.options.errors = false;
    }
    assert!(told <= failed(stage), "{told} requests failed for {} faults\n{}", failed(stage), stage.run.scene());
}

/// One of the guests goes through a change of its driver or of its machine, with requests in flight where that is how it
/// happens.
fn move_on(stage: &mut Stage, guest: &mut Guest, report: &mut Report) {
    let style = guest.front.borrow().options.style;
    let ram = guest.vbd.params.starts_with("ram");
    match style {
        Style::Ovmf | Style::Grub => {
            stage.run.at_rest(&guest.front);
            again(stage, guest);
            marks::hit("firmware, then Linux");
        }
        _ if ram || stage.run.random.one_in(2) => {
            let some = Duration::from_micros(stage.run.random.pick(&[0, 10, 1000]));
            stage.run.rest(some);
            guest.front.borrow_mut().options.abrupt = true;
            let flying = guest.front.borrow().in_flight() > 0;
            again(stage, guest);
            guest.front.borrow_mut().options.abrupt = false;
            if flying {
                marks::hit("kexec: reconnected with requests in flight");
            }
        }
        _ => migrate(stage, guest, report),
    }
}

/// The driver closes and another takes the device over.
fn again(stage: &mut Stage, guest: &Guest) {
    let connects = guest.front.borrow().tally.connects;
    guest.front.borrow_mut().close(Some(Style::Linux));
    let front = guest.front.clone();
    let there = stage.run.until(Duration::from_secs(20), |_| front.borrow().tally.connects > connects);
    assert!(there, "the next driver never connects: {:?}\n{}", front.borrow().phase(), stage.run.scene());
    shape(guest);
    work(stage, guest);
}

/// The guest goes on as another domain of this machine; while it moves both have the disk.
fn migrate(stage: &mut Stage, guest: &mut Guest, report: &mut Report) {
    stage.run.at_rest(&guest.front);
    guest.front.borrow_mut().silent = true;
    let vbd = Vbd { guest: MIGRATED, ..guest.vbd.clone() };
    let next = stage.guest(vbd, &guest.model);
    next.front.borrow_mut().options.style = Style::Resumed;
    stage.attach(&next);
    let destroyed = stage.run.destroy(guest.vbd.guest);
    assert_eq!(destroyed, Ok(()), "{}", stage.run.scene());
    assert_eq!(stage.run.world.life(guest.vbd.guest), None, "a zombie is left\n{}", stage.run.scene());
    report.guest(&guest.front.borrow().tally);
    *guest = next;
    marks::hit("migration on one host: old and new at once");
    shape(guest);
    work(stage, guest);
}
