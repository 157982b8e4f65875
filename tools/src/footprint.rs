//! What `make footprint` measures: how long tapdom and its disks take to be of use, and in what memory. Both sides of the
//! boot's border know these words.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

/// Disks that a domain of little memory shall serve.
pub const SERVED: usize = 8;
/// How often one disk is attached; the figure is the middle one.
pub const PLUGS: usize = 5;

/// What was measured, by name; what was measured several times has several values.
#[derive(Default)]
pub struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    /// Notes what dom0 said: a name and a value.
    pub fn hear(&mut self, text: &str) -> Result<()> {
        let (name, value) = text.split_once(' ').with_context(|| format!("not a figure: {text:?}"))?;
        self.note(name, value.parse().with_context(|| format!("{name} is {value:?}"))?);
        Ok(())
    }

    /// Notes one that the host knows.
    pub fn note(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    /// The first value.
    fn first(&self, name: &str) -> Result<f64> {
        self.0.get(name).and_then(|values| values.first().copied()).with_context(|| format!("{name} was not measured"))
    }

    /// The last value.
    fn last(&self, name: &str) -> Result<f64> {
        self.0.get(name).and_then(|values| values.last().copied()).with_context(|| format!("{name} was not measured"))
    }

    /// The middle value.
    fn middle(&self, name: &str) -> Result<f64> {
        let mut values = self.0.get(name).with_context(|| format!("{name} was not measured"))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().with_context(|| format!("{name} was not measured"))
    }

    /// KiB for each of so many disks, over what was in use before.
    fn each(&self, name: &str, disks: f64) -> Result<f64> {
        Ok((self.first(name)? - self.first("idle_0")?) / disks / KIB)
    }
}

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;

/// The table: what was measured, and what the goals make of it.
pub fn table(figures: &Figures) -> Result<String> {
    let served = SERVED as f64;
    let many = figures.first("many")?;
    // What the heap does not have: the image with its stacks, page tables, the pages that the toolstack made.
    let rest = figures.first("memory_mib")? * MIB - figures.first("heap_bytes")?;
    let rows = [
        row("image, stripped, KiB", figures.first("image_bytes")? / KIB, None),
        row(
            "first instruction to state 2 of a RAM disk, instructions of tapdom's processor, millions",
            figures.first("offered_own")? / 1e6,
            Some((5.0, 50.0)),
        ),
        row("the same, the machine's time, ms", figures.first("offered_ns")? / 1e6, None),
        row(
            "first instruction to state 2 of a disk on a lower disk, instructions of tapdom's processor, millions",
            figures.last("offered_own")? / 1e6,
            Some((5.0, 50.0)),
        ),
        row("the same, the machine's time, ms", figures.last("offered_ns")? / 1e6, None),
        row("plug of a disk to Connected, ms", figures.middle("plug_tapdom_ns")? / 1e6, Some((25.0, 30.0))),
        row("the same of blkback", figures.middle("plug_blkback_ns")? / 1e6, None),
        row(&format!("plug of {many} disks at once, ms"), figures.first("plug_many_ns")? / 1e6, None),
        row("the same, ms a disk", figures.first("plug_many_ns")? / 1e6 / many, None),
        row("memory in use with one lower disk and none attached, KiB", figures.first("idle_0")? / KIB, None),
        row("idle, 1 disk attached, KiB", figures.each("idle_1", 1.0)?, Some((64.0, 256.0))),
        row(&format!("idle, {SERVED} disks, KiB a disk"), figures.each("idle_8", served)?, Some((64.0, 256.0))),
        row(&format!("idle, {many} disks, KiB a disk"), figures.first("idle_many")? / many / KIB, Some((64.0, 256.0))),
        row("loaded, 1 disk, KiB", figures.each("loaded_1", 1.0)?, Some((512.0, 2048.0))),
        row(&format!("loaded, {SERVED} disks, KiB a disk"), figures.each("loaded_8", served)?, Some((512.0, 2048.0))),
        row(
            &format!("a domain with {SERVED} loaded disks on one lower disk: all memory in use, MiB"),
            (rest + figures.first("loaded_8")?) / MIB,
            Some((8.0, 16.0)),
        ),
        row(
            &format!("`memory=` with which {SERVED} disks were loaded, MiB"),
            figures.first("little_mib")?,
            Some((8.0, 16.0)),
        ),
    ];
    Ok("| what | measured | goal | floor | |\n|---|---|---|---|---|\n".to_owned() + &rows.concat())
}

/// How a figure stands to its goal and its floor.
pub fn verdict(figure: f64, goal: f64, floor: f64) -> &'static str {
    match figure {
        figure if figure <= goal => "goal",
        figure if figure <= floor => "floor",
        _ => "missed",
    }
}

fn row(what: &str, figure: f64, goals: Option<(f64, f64)>) -> String {
    let mut text = String::new();
    let digits = if figure < 100.0 { 1 } else { 0 };
    // Writing to a string does not fail.
    let _ = match goals {
        Some((goal, floor)) => {
            writeln!(text, "| {what} | {figure:.digits$} | {goal} | {floor} | {} |", verdict(figure, goal, floor))
        }
        None => writeln!(text, "| {what} | {figure:.digits$} | | | |"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_heard_and_the_middle_is_found() {
        let mut figures = Figures::default();
        for text in ["plug 5", "plug 1", "plug 3"] {
            figures.hear(text).unwrap();
        }
        assert_eq!((figures.first("plug").unwrap(), figures.last("plug").unwrap()), (5.0, 3.0));
        assert_eq!(figures.middle("plug").unwrap(), 3.0);
        assert!(figures.first("else").is_err() && figures.hear("plug").is_err() && figures.hear("plug x").is_err());
    }

    #[test]
    fn a_row_says_how_it_stands() {
        assert_eq!(row("x", 12.34, None), "| x | 12.3 | | | |\n");
        assert_eq!(row("x", 1234.5, Some((1.0, 2.0))), "| x | 1234 | 1 | 2 | missed |\n");
        assert_eq!((verdict(1.0, 1.0, 2.0), verdict(2.0, 1.0, 2.0)), ("goal", "floor"));
    }
}
