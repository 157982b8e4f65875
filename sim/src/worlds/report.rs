//! What a world was made of, in numbers that add up over a campaign.

use std::collections::BTreeMap;
use std::fmt;

use crate::frontend::Tally;
use crate::marks;
use crate::run::Run;

/// The numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Worlds played.
    pub worlds: u64,
    /// Requests answered.
    pub requests: u64,
    /// Connections after a frontend's first.
    pub reconnects: u64,
    /// Refusals of Xen and of xenstored that were made up.
    pub faults: u64,
    /// Turns of the product.
    pub turns: u64,
    /// Schedule points passed in them.
    pub points: u64,
    /// Steps that peers made at such points.
    pub switches: u64,
    /// What took longest.
    pub most: Most,
    /// How often each row of the marks was hit.
    pub marks: BTreeMap<String, u64>,
}

/// The most of what is bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Schedule points that a task of the product passed while others waited.
    pub poll: u64,
    /// Turns of the product that an answer to an honest guest took beside hostile ones, while nobody below owed an answer.
    pub turns: u64,
    /// Microseconds that one took on a slow disk, on a partition of it and on an image there.
    pub slow_raw: u64,
    /// As above.
    pub slow_image: u64,
}

impl Report {
    /// Counts what the run knows of itself. What its guests did is added by [`guest`](Report::guest).
    pub fn of(run: &Run) -> Self {
        let (points, switches) = run.points();
        let faults = run.world.faults().total().into();
        let most = Most { poll: run.longest().0, ..Most::default() };
        Report { faults, turns: run.turns, points, switches, most, ..Report::default() }
    }

    /// Counts what one frontend did.
    pub fn guest(&mut self, tally: &Tally) {
        let Tally { reads, writes, flushes, discards, errors, unsupported, .. } = *tally;
        let answers = [reads, writes, flushes, discards, errors, unsupported];
        self.requests += answers.into_iter().map(u64::from).sum::<u64>();
        self.reconnects += u64::from(tally.connects.saturating_sub(1));
    }

    /// Adds another's numbers.
    pub fn add(&mut self, other: &Report) {
        for (name, number) in other.numbers() {
            self.set(name, number);
        }
        for (mark, times) in &other.marks {
            *self.marks.entry(mark.clone()).or_default() += times;
        }
    }

    fn numbers(&self) -> [(&'static str, u64); 11] {
        [
            ("worlds", self.worlds),
            ("requests", self.requests),
            ("reconnects", self.reconnects),
            ("faults", self.faults),
            ("turns", self.turns),
            ("points", self.points),
            ("switches", self.switches),
            ("points in a poll at most", self.most.poll),
            ("turns for an answer at most", self.most.turns),
            ("us on a slow disk at most", self.most.slow_raw),
            ("us on a slow image at most", self.most.slow_image),
        ]
    }

    fn set(&mut self, name: &str, more: u64) -> bool {
        let most = match name {
            "points in a poll at most" => Some(&mut self.most.poll),
            "turns for an answer at most" => Some(&mut self.most.turns),
            "us on a slow disk at most" => Some(&mut self.most.slow_raw),
            "us on a slow image at most" => Some(&mut self.most.slow_image),
            _ => None,
        };
        if let Some(most) = most {
            *most = more.max(*most);
            return true;
        }
        let number = match name {
            "worlds" => &mut self.worlds,
            "requests" => &mut self.requests,
            "reconnects" => &mut self.reconnects,
            "faults" => &mut self.faults,
            "turns" => &mut self.turns,
            "points" => &mut self.points,
            "switches" => &mut self.switches,
            _ => return false,
        };
        *number += more;
        true
    }

    /// One line for each number, as [`read`](Report::read) takes them from another process.
    pub fn lines(&self) -> String {
        let numbers = self.numbers().map(|(name, number)| format!("number {number} {name}"));
        let marks = self.marks.iter().map(|(mark, times)| format!("mark {times} {mark}"));
        numbers.into_iter().chain(marks).collect::<Vec<_>>().join("\n")
    }

    /// Adds what such a line says; false if it is none.
    pub fn read(&mut self, line: &str) -> bool {
        let mut words = line.splitn(3, ' ');
        let (Some(word), Some(Ok(number)), Some(name)) =
            (words.next(), words.next().map(str::parse::<u64>), words.next())
        else {
            return false;
        };
        match word {
            "number" => self.set(name, number),
            "mark" => {
                *self.marks.entry(name.into()).or_default() += number;
                true
            }
            _ => false,
        }
    }

    /// Rows of the marks that were never hit.
    pub fn missing(&self) -> Vec<&'static str> {
        let rows = marks::ROWS.iter().flat_map(|(_, rows)| rows.iter().copied());
        rows.filter(|row| !self.marks.contains_key(*row)).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: usize = marks::ROWS.iter().map(|(_, rows)| rows.len()).sum();
        for (name, number) in self.numbers() {
            write!(f, "{number} {name}, ")?;
        }
        write!(f, "{} of {rows} marks hit", rows - self.missing().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_lines_and_adds_up() {
        let mut report = Report { worlds: 3, requests: 17, switches: 5, ..Report::default() };
        report.marks.insert("some words of a row".into(), 2);
        let mut back = Report::default();
        assert!(report.lines().lines().all(|line| back.read(line)));
        assert_eq!(back, report);
        back.add(&report);
        assert_eq!((back.requests, back.marks["some words of a row"]), (34, 4));
        assert!(!back.read("failed 3 with a panic"));
    }
}
