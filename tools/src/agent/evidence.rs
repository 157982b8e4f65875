//! What may explain a failure: everything that the domains, xl and xenstore have said, put into the report.

use std::fs;

use super::domain::XL;
use super::process::ask;
use super::reporter::Reporter;
use super::store;

/// The folders of the logs; consoles last, because the end of a report is what is read first.
const LOGS: [&str; 2] = ["/var/log/xen", "/var/log/xen/console"];

/// Keeps all of it.
pub fn keep(reporter: &Reporter) {
    let say = |title: &str, text: &str| reporter.detail(&format!("--- {title} ---\n{text}"));
    let told = |words: &[&str]| ask(words, XL).map(|said| said.words()).unwrap_or_else(|error| error.to_string());
    say("xenstore", &store::tree("/local/domain"));
    say("dmesg of dom0", tail(&told(&["busybox", "dmesg"]), 40));
    say("xl dmesg", tail(&told(&["xl", "dmesg"]), 40));
    say("xl list", &told(&["xl", "list"]));
    for folder in LOGS {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(bytes) = fs::read(entry.path()) {
                say(&entry.path().display().to_string(), tail(&String::from_utf8_lossy(&bytes), 60));
            }
        }
    }
}

/// The last lines of a text.
fn tail(text: &str, lines: usize) -> &str {
    let text = text.trim_end();
    let start = text.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn the_tail_of_a_text() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\nb\nc", 1), "c");
        assert_eq!(tail("", 5), "");
    }
}
