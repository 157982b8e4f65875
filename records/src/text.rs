//! The record as text. Numbers that differ from run to run get names: domains, grants, ports.

use std::fmt::Write as _;

use crate::bench::{Change, DEVID, Ids, Node};

/// What was seen so far.
pub struct Text(String);

impl From<Text> for String {
    fn from(text: Text) -> String {
        text.0
    }
}

/// The directories of a disk: what the record calls them, and where they are.
pub fn directories(ids: Ids) -> Vec<(&'static str, String)> {
    let Ids { backend, frontend } = ids;
    vec![
        ("backend", format!("/local/domain/{backend}/backend/vbd/{frontend}/{DEVID}")),
        ("qdisk", format!("/local/domain/{backend}/backend/qdisk/{frontend}/{DEVID}")),
        ("frontend", format!("/local/domain/{frontend}/device/vbd/{DEVID}")),
        ("libxl", format!("/libxl/{frontend}/device/vbd/{DEVID}")),
        ("error", format!("/local/domain/{backend}/error/backend/vbd/{frontend}/{DEVID}")),
        ("qdisk-error", format!("/local/domain/{backend}/error/backend/qdisk/{frontend}/{DEVID}")),
    ]
}

/// The nodes whose values a watcher notes, as whole paths.
pub fn watched(ids: Ids) -> Vec<String> {
    let keys = |of: &str| -> &'static [&'static str] {
        match of {
            "backend" | "qdisk" => &["state", "online", "sectors", "hotplug-error"],
            "frontend" => &["state"],
            "error" | "qdisk-error" => &["error"],
            _ => &[],
        }
    };
    let all = directories(ids).into_iter();
    all.flat_map(|(of, directory)| keys(of).iter().map(move |key| format!("{directory}/{key}"))).collect()
}

impl Text {
    /// A record that begins with what it shows.
    pub fn new(shows: &str) -> Text {
        Text(format!("{shows}\n"))
    }

    /// One more line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }

    /// Nodes, with the owner and the readers of each that has not those of its parent.
    pub fn nodes(&mut self, ids: Ids, when: &str, nodes: &[Node]) {
        self.line(format!("xenstore, {when}:{}", if nodes.is_empty() { " no node" } else { "" }));
        for node in nodes {
            let above = node.path.rsplit_once('/').map_or("", |(up, _)| up);
            let inherited = nodes.iter().find(|other| other.path == above);
            let mut line = format!("  {}", short(ids, &node.path));
            if !node.value.is_empty() {
                let _ = write!(line, " = {}", value(ids, &node.path, &node.value));
            }
            if inherited.is_none_or(|up| up.permissions != node.permissions) {
                let who: Vec<String> = node.permissions.iter().map(|word| permission(ids, word)).collect();
                let _ = write!(line, " ({})", who.join(" "));
            }
            self.line(line);
        }
    }

    /// The values that each watched node went through. A value that is written again is no new one, and what happened in
    /// two nodes at about the same time has no order: watches come when they come.
    pub fn history(&mut self, ids: Ids, changes: &[Change]) {
        self.line("what each node went through:");
        for path in watched(ids) {
            let mut seen: Vec<&Option<String>> = changes.iter().filter(|c| c.path == path).map(|c| &c.value).collect();
            seen.dedup();
            let first = seen.iter().position(|value| value.is_some());
            let Some(mut first) = first else { continue };
            // The toolstack's own 1: a backend that refuses at once has left it before a watcher can look.
            let begun = path.contains("/backend/") && path.ends_with("/state") && seen[first].as_deref() == Some("1");
            first += usize::from(begun);
            let words = seen[first..].iter().map(|seen| match seen {
                Some(text) if text.contains(' ') => format!("{:?}", value(ids, &path, text)),
                Some(text) => value(ids, &path, text),
                None => "gone".to_owned(),
            });
            let words: Vec<String> = words.collect();
            self.line(format!("  {}: {}", short(ids, &path), words.join(", ")));
        }
    }
}

fn short(ids: Ids, path: &str) -> String {
    for (name, directory) in directories(ids) {
        if let Some(rest) = path.strip_prefix(&directory)
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return format!("{name}{rest}");
        }
    }
    path.to_owned()
}

fn domain(ids: Ids, number: &str) -> String {
    match number.parse::<u32>() {
        Ok(0) => "dom0".to_owned(),
        Ok(id) if id == ids.backend => "BACK".to_owned(),
        Ok(id) if id == ids.frontend => "FRONT".to_owned(),
        _ => format!("another domain, {number}"),
    }
}

fn permission(ids: Ids, word: &str) -> String {
    let (letter, number) = word.split_at(word.len().min(1));
    let right = match letter {
        "n" => "none",
        "r" => "read",
        "w" => "write",
        "b" => "both",
        other => other,
    };
    format!("{}:{right}", domain(ids, number))
}

fn value(ids: Ids, path: &str, value: &str) -> String {
    let key = path.rsplit_once('/').map_or(path, |(_, key)| key);
    match key {
        "frontend-id" | "backend-id" => domain(ids, value),
        _ if key.starts_with("ring-ref") && value.parse::<u32>().is_ok() => "GRANT".to_owned(),
        "event-channel" if value.parse::<u32>().is_ok() => "PORT".to_owned(),
        "frontend" | "backend" => {
            let known = directories(ids).into_iter().find(|(_, directory)| directory == value);
            known.map_or_else(|| value.to_owned(), |(name, _)| format!("the directory {name}"))
        }
        _ => value.replace(char::is_control, "?"),
    }
}

/// Where two texts part, line by line: `-` only in the first, `+` only in the second, with the lines between.
pub fn difference(wanted: &str, found: &str) -> Option<String> {
    if wanted == found {
        return None;
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), found.lines().collect());
    // The longest common subsequence; the texts have some hundred lines.
    let mut longest = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] = match a[i] == b[j] {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        let (sign, line) = if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            (' ', a[i - 1])
        } else if j == b.len() || i < a.len() && longest[i + 1][j] >= longest[i][j + 1] {
            i += 1;
            ('-', a[i - 1])
        } else {
            j += 1;
            ('+', b[j - 1])
        };
        if sign != ' ' || line.ends_with(':') {
            let _ = writeln!(out, "{sign} {line}");
        }
    }
    // Only ends of lines differ.
    if !out.lines().any(|line| line.starts_with(['-', '+'])) {
        out.push_str("the texts differ in their line ends\n");
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: Ids = Ids { backend: 3, frontend: 0 };

    fn node(path: &str, value: &str, permissions: &[&str]) -> Node {
        let permissions = permissions.iter().map(|word| (*word).to_owned()).collect();
        Node { path: path.to_owned(), value: value.to_owned(), permissions }
    }

    fn lines(text: Text) -> Vec<String> {
        String::from(text).lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn what_differs_from_run_to_run_has_a_name() {
        let directory = "/local/domain/3/backend/vbd/0/51712";
        let nodes = [
            node(directory, "", &["n3", "r0"]),
            node(&format!("{directory}/frontend-id"), "0", &["n3", "r0"]),
            node(&format!("{directory}/state"), "4", &["n3", "b7"]),
            node("/local/domain/0/device/vbd/51712/ring-ref0", "4711", &["n0", "r3"]),
            node("/libxl/0/device/vbd/51712/backend", directory, &["n0"]),
        ];
        let mut text = Text::new("x");
        text.nodes(IDS, "now", &nodes);
        let expected = [
            "xenstore, now:",
            "  backend (BACK:none dom0:read)",
            "  backend/frontend-id = dom0",
            "  backend/state = 4 (BACK:none another domain, 7:both)",
            "  frontend/ring-ref0 = GRANT (dom0:none BACK:read)",
            "  libxl/backend = the directory backend (dom0:none)",
        ];
        assert_eq!(lines(text), expected);
    }

    #[test]
    fn a_history_is_told_node_by_node() {
        let state = || "/local/domain/3/backend/vbd/0/51712/state".to_owned();
        let front = "/local/domain/0/device/vbd/51712/state".to_owned();
        let values = [None, Some("1"), Some("1"), Some("2"), None];
        let mut changes: Vec<Change> =
            values.iter().map(|value| Change { path: state(), value: value.map(str::to_owned) }).collect();
        changes.insert(2, Change { path: front, value: Some("1".to_owned()) });
        let mut text = Text::new("x");
        text.history(IDS, &changes);
        assert_eq!(lines(text), ["what each node went through:", "  backend/state: 2, gone", "  frontend/state: 1"]);
    }

    #[test]
    fn a_difference_names_the_lines() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("when:\na\nb\n", "when:\na\nc\n").unwrap(), "  when:\n- b\n+ c\n");
        assert_eq!(difference("a\n", "a\nb\n").unwrap(), "+ b\n");
        assert!(difference("a\n", "a").unwrap().contains("line ends"));
    }
}
