//! The verdict on a boot: what was asked for, what the agent reported, how the machine ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use records::Record;

use super::machine::Ending;
use crate::report::{BOOT, Line};

/// What became of one scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Passed {
        /// How long it took.
        ms: u64,
    },
    /// It did not hold, or nobody heard that it did.
    Failed {
        /// The reason, for a person.
        why: String,
    },
}

/// Collects the agent's lines and answers what they amount to. Silence is never a pass.
pub struct Judge {
    asked: Vec<String>,
    verdicts: Vec<(String, Verdict)>,
    running: Option<String>,
    boot_failed: Option<String>,
    ended: bool,
    records: BTreeMap<String, String>,
    /// Of the scenario that runs.
    unjudged: BTreeSet<String>,
    recording: bool,
}

impl Judge {
    /// A judge who expects a verdict on each of these.
    pub fn new(asked: &[String]) -> Judge {
        Judge {
            asked: asked.to_vec(),
            verdicts: Vec::new(),
            running: None,
            boot_failed: None,
            ended: false,
            records: BTreeMap::new(),
            unjudged: BTreeSet::new(),
            recording: false,
        }
    }

    /// A judge who takes every record for right, because they are made anew.
    pub fn recording(asked: &[String]) -> Judge {
        Judge { recording: true, ..Judge::new(asked) }
    }

    /// The records heard so far, by name.
    pub fn records(&self) -> &BTreeMap<String, String> {
        &self.records
    }

    /// Takes one line of the report.
    pub fn hear(&mut self, line: &Line) {
        match line {
            Line::Start(name) => {
                self.running = Some(name.clone());
                self.unjudged.clear();
            }
            Line::Record(name, text) => {
                self.unjudged.insert(name.clone());
                let record = self.records.entry(name.clone()).or_default();
                record.push_str(text);
                record.push('\n');
            }
            Line::Fail(name, _, why) if name == BOOT => self.boot_failed = Some(why.clone()),
            Line::Pass(name, ms) => {
                let verdict = match self.parting() {
                    Some(why) => Verdict::Failed { why },
                    None => Verdict::Passed { ms: *ms },
                };
                self.settle(name, verdict);
            }
            Line::Fail(name, _, why) => self.settle(name, Verdict::Failed { why: why.clone() }),
            Line::End => self.ended = true,
            Line::Step(_) | Line::Detail(_) | Line::Shell => {}
        }
    }

    /// Where the records of the scenario that has just ended are not those of the repository.
    fn parting(&mut self) -> Option<String> {
        let names = std::mem::take(&mut self.unjudged);
        let parting = names.iter().filter_map(|name| {
            let difference = match Record::named(name) {
                None => Some("there is no such record".to_owned()),
                Some(known) => known.difference(&self.records[name]).filter(|_| !self.recording),
            };
            difference.map(|text| format!("the record {name} is another now (- as it was, + as seen):\n{text}"))
        });
        Some(parting.collect::<Vec<_>>().join("\n")).filter(|text| !text.is_empty())
    }

    fn settle(&mut self, name: &str, verdict: Verdict) {
        self.running = None;
        self.verdicts.push((name.to_owned(), verdict));
    }

    /// The verdict on everything, in the order asked. A boot that ended badly fails what had no verdict yet, and if
    /// everything had one, the boot itself is a failure of its own.
    pub fn close(mut self, ending: &Ending) -> Summary {
        let trouble = match ending {
            Ending::PoweredOff if self.boot_failed.is_some() => self.boot_failed.take(),
            Ending::PoweredOff if self.ended => None,
            Ending::PoweredOff => Some("dom0 powered off before the report was complete".to_owned()),
            Ending::Died(words) => Some(format!("the machine died: {words}")),
            Ending::TimedOut => Some("the time-out ended the boot".to_owned()),
            Ending::Qemu(words) => Some(words.clone()),
        };
        let mut results = Vec::new();
        let mut unsettled = false;
        for name in &self.asked {
            let found = self.verdicts.iter().position(|(known, _)| known == name);
            let verdict = match found {
                Some(at) => self.verdicts.remove(at).1,
                None => {
                    unsettled = true;
                    let whence = if self.running.as_ref() == Some(name) { "while it ran" } else { "before it began" };
                    let why = trouble.clone().unwrap_or_else(|| "dom0 reported no verdict".to_owned());
                    Verdict::Failed { why: format!("{whence}: {why}") }
                }
            };
            results.push((name.clone(), verdict));
        }
        // Verdicts nobody asked for, or a second one on the same scenario: the agent and we disagree on the job.
        results.extend(self.verdicts.into_iter().map(|(name, verdict)| {
            (name, Verdict::Failed { why: format!("a verdict nobody asked for: {verdict:?}") })
        }));
        if let (Some(why), false) = (trouble, unsettled) {
            results.push((BOOT.to_owned(), Verdict::Failed { why }));
        }
        Summary { results }
    }
}

/// The closing account.
pub struct Summary {
    /// Each scenario with its verdict, in the order asked.
    pub results: Vec<(String, Verdict)>,
}

impl Summary {
    /// How many failed.
    pub fn failed(&self) -> usize {
        self.results.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Failed { .. })).count()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, verdict) in &self.results {
            match verdict {
                Verdict::Passed { ms } => writeln!(f, "ok    {name} ({}.{} s)", ms / 1000, ms % 1000 / 100)?,
                Verdict::Failed { why } => writeln!(f, "FAIL  {name}: {why}")?,
            }
        }
        writeln!(f, "{} passed, {} failed", self.results.len() - self.failed(), self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Vec<String> {
        vec!["one".to_owned(), "two".to_owned()]
    }

    fn heard(lines: &[Line], ending: Ending) -> Summary {
        let mut judge = Judge::new(&asked());
        lines.iter().for_each(|line| judge.hear(line));
        judge.close(&ending)
    }

    #[test]
    fn all_passed() {
        let lines = [Line::Pass("one".into(), 1500), Line::Pass("two".into(), 20), Line::End];
        let summary = heard(&lines, Ending::PoweredOff);
        assert_eq!(summary.failed(), 0);
        assert_eq!(summary.to_string(), "ok    one (1.5 s)\nok    two (0.0 s)\n2 passed, 0 failed\n");
    }

    #[test]
    fn a_record_must_be_the_one_of_the_repository() {
        let known = &records::ALL[0];
        let told = |text: &str| -> Vec<Line> {
            let lines = text.lines().map(|line| Line::Record(known.name.into(), line.into()));
            let begin = std::iter::once(Line::Start("one".into()));
            begin.chain(lines).chain([Line::Pass("one".into(), 1), Line::Pass("two".into(), 1), Line::End]).collect()
        };
        assert_eq!(heard(&told(known.seen), Ending::PoweredOff).failed(), 0);
        let other = format!("{}one more\n", known.seen);
        let summary = heard(&told(&other), Ending::PoweredOff);
        assert!(summary.to_string().contains("FAIL  one: the record") && summary.to_string().contains("+ one more"));
        let mut judge = Judge::recording(&asked());
        told(&other).iter().for_each(|line| judge.hear(line));
        assert_eq!(judge.records()[known.name], other);
        assert_eq!(judge.close(&Ending::PoweredOff).failed(), 0);
    }

    #[test]
    fn silence_fails() {
        let summary = heard(&[Line::Pass("one".into(), 1), Line::End], Ending::PoweredOff);
        assert_eq!(summary.failed(), 1);
        assert!(summary.to_string().ends_with("\n1 passed, 1 failed\n"));
    }

    #[test]
    fn a_death_is_blamed_on_the_one_that_ran() {
        let lines = [Line::Pass("one".into(), 1), Line::Start("two".into())];
        let summary = heard(&lines, Ending::Died("Panic on CPU 0:".into()));
        let Verdict::Failed { why } = &summary.results[1].1 else { panic!("it passed") };
        assert!(why.contains("while it ran") && why.contains("Panic"), "{why}");
    }

    #[test]
    fn a_boot_that_ends_badly_after_all_verdicts_fails_too() {
        let lines = [Line::Pass("one".into(), 1), Line::Pass("two".into(), 1)];
        for ending in [Ending::TimedOut, Ending::PoweredOff, Ending::Qemu("gone".into())] {
            assert_eq!(heard(&lines, ending).failed(), 1);
        }
    }

    #[test]
    fn a_boot_that_failed_fails_what_it_never_began() {
        let lines = [Line::Pass("one".into(), 1), Line::Fail(BOOT.into(), 0, "no daemon".into())];
        let summary = heard(&lines, Ending::PoweredOff);
        assert_eq!(summary.results.len(), 2);
        let Verdict::Failed { why } = &summary.results[1].1 else { panic!("it passed") };
        assert!(why.contains("before it began: no daemon"), "{why}");
    }

    #[test]
    fn two_verdicts_on_one_scenario_fail() {
        let lines = [Line::Pass("one".into(), 1), Line::Pass("one".into(), 1), Line::Pass("two".into(), 1), Line::End];
        assert_eq!(heard(&lines, Ending::PoweredOff).failed(), 1);
    }
}
