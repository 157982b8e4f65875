//! Scenarios that run in two worlds, real Xen and the simulator, and what was seen of each on real Xen.
//!
//! A scenario is written once, over a [`Bench`]; each world has a bench. What it sees becomes a text, the *record*: what
//! xl said, every node of the disk's directories with its owner at the moments that matter, the values that a node went
//! through, what the guest's kernel makes of the disk, what became of its requests. The texts in `texts/` come from test
//! boots, and both worlds are compared with them: that is how the simulator is known to be like Xen.
//!
//! # Layout
//! - [`bench`]: what a world must be able to do
//! - [`scenarios`]: the scenarios
//! - [`text`]: the record, in which nothing is left of the numbers that differ from run to run
//! - [`pattern`]: the bytes that are written
#![forbid(unsafe_code)]

pub mod bench;
pub mod pattern;
pub mod scenarios;
pub mod text;

use anyhow::Result;
use bench::Bench;

/// The folder with the texts, in the project's folder.
pub const FOLDER: &str = "records/texts";

/// One scenario and what was seen of it on real Xen.
pub struct Record {
    /// Its name, and that of its text.
    pub name: &'static str,
    /// What it shows, in one sentence; the text's first line.
    pub shows: &'static str,
    /// The text that both worlds must come to.
    pub seen: &'static str,
    run: fn(&mut dyn Bench, &mut text::Text) -> Result<()>,
}

macro_rules! record {
    ($name:literal, $run:path, $shows:literal) => {
        Record { name: $name, shows: $shows, seen: include_str!(concat!("../texts/", $name, ".txt")), run: $run }
    };
}

/// All of them, in the order in which one boot goes through them: the lower disk grows in the last but one, and only
/// the last needs a guest.
pub const ALL: &[Record] = &[
    record!("ram", scenarios::ram, "a RAM disk is attached, used and detached"),
    record!("partition", scenarios::partition, "a partition of a lower disk is attached, used and detached"),
    record!("read-only", scenarios::read_only, "mode r: what is there can be read, a write is refused"),
    record!("wrong-target", scenarios::wrong_target, "a disk that is not there is refused"),
    record!("wrong-format", scenarios::wrong_format, "a format that cannot be served is refused after xl has left"),
    record!("reconnect", scenarios::reconnect, "a frontend lets go and comes back to the same directory"),
    record!("resize", scenarios::resize, "the lower disk grows under a frontend that is connected"),
    record!("destroy", scenarios::destroy, "a guest is destroyed in the middle of its writes"),
];

impl Record {
    /// The one of that name.
    pub fn named(name: &str) -> Option<&'static Record> {
        ALL.iter().find(|record| record.name == name)
    }

    /// Plays the scenario in a world; the text is what was seen.
    pub fn play(&self, bench: &mut dyn Bench) -> Result<String> {
        let mut text = text::Text::new(self.shows);
        (self.run)(bench, &mut text)?;
        Ok(text.into())
    }

    /// Where a text and the one from real Xen part, line by line; nothing if they are the same.
    pub fn difference(&self, found: &str) -> Option<String> {
        text::difference(self.seen, found)
    }
}
