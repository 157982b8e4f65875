//! What goes through VBDs, look by look, and the failures that the server tells of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use protocol::tapdisk::{Dialect, EVERY_MINOR};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::arguments::{Arguments, Trace};
use crate::commands::{Desk, print};
use crate::conversation::{Conversation, Vbd};
use crate::failure::Failure;
use crate::line::Line;
use crate::show::{Form, hex};

/// Counters of a VBD, which only grow while it has the same image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// Sectors read and written.
    sectors: [u64; 2],
    /// Requests taken from rings and answered.
    requests: [u64; 2],
}

/// A VBD as one look saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    vbd: Vbd,
    counters: Counters,
}

/// Follows until the count is reached, or for ever.
pub fn follow(arguments: &Arguments, trace: &Trace, desk: &mut Desk<'_>) -> Result<(), Failure> {
    let server = desk.target.one(trace.pid)?;
    let title = server.title;
    let mut talk = Conversation::new(server.line, arguments.dialect(), arguments.debug);
    let events = desk.target.events(trace.pid, &trace.events)?;
    // Failures are told in blktap's dialect, whatever the other channels speak.
    let mut events = events.map(|line| Conversation::new(line, Dialect::Blktap, arguments.debug));
    let mut before = BTreeMap::new();
    let interval = Duration::from_secs(trace.interval.get());
    let mut looks = 0;
    loop {
        let now = look(&mut talk, trace.minor).map_err(|why| why.while_doing(&title))?;
        let text: String = changes(&before, &now).into_iter().map(|change| change.text(desk.form)).collect();
        print(desk.out, &text)?;
        before = now;
        looks += 1;
        if trace.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        let until = Instant::now() + interval;
        while let Some(channel) = &mut events {
            match channel.event(until) {
                Ok(None) => break,
                Ok(Some((minor, why))) if trace.minor.is_none_or(|wanted| wanted == minor) => {
                    print(desk.out, &failure(desk.form, minor, &why))?;
                }
                Ok(Some(_)) => {}
                Err(why) => {
                    eprintln!("tap-ctl: {title}: failures are not told any more: {why}");
                    events = None;
                }
            }
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

fn look<L: Line>(talk: &mut Conversation<L>, minor: Option<u16>) -> Result<BTreeMap<u16, Look>, Failure> {
    let mut looks = BTreeMap::new();
    for vbd in talk.list(EVERY_MINOR)?.into_iter().filter(|vbd| minor.is_none_or(|wanted| wanted == vbd.minor)) {
        let counters = match talk.stats(vbd.minor) {
            Ok(json) => counters(&json).ok_or_else(|| {
                let text = format!("minor {}: statistics without counters", vbd.minor);
                Failure::new(Errno::PROTO, text)
            })?,
            // Detached since it was listed.
            Err(why) if why.errno() == Errno::NODEV => continue,
            Err(why) => return Err(why),
        };
        looks.insert(vbd.minor, Look { vbd, counters });
    }
    Ok(looks)
}

/// The counters of tapdisk's JSON: `secs` always, `xenbus.reqs` once a ring is connected.
fn counters(json: &[u8]) -> Option<Counters> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let pair = |value: &Value| Some([value.get(0)?.as_u64()?, value.get(1)?.as_u64()?]);
    let requests = value.get("xenbus").and_then(|xenbus| pair(xenbus.get("reqs")?)).unwrap_or_default();
    Some(Counters { sectors: pair(value.get("secs")?)?, requests })
}

/// What one look saw that the one before did not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    minor: u16,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// There, in this state, with this image.
    Is(u32, String),
    /// Detached.
    Gone,
    /// Moved since.
    Moved(Counters),
}

fn changes(before: &BTreeMap<u16, Look>, now: &BTreeMap<u16, Look>) -> Vec<Change> {
    let mut changes = Vec::new();
    for minor in before.keys().filter(|minor| !now.contains_key(minor)) {
        changes.push(Change { minor: *minor, what: What::Gone });
    }
    for (minor, look) in now {
        let earlier = before.get(minor);
        if earlier.is_none_or(|earlier| earlier.vbd != look.vbd) {
            changes.push(Change { minor: *minor, what: What::Is(look.vbd.state, look.vbd.path.clone()) });
        }
        // What was moved before the first look is not of this time.
        let Some(earlier) = earlier else { continue };
        let since = |now: [u64; 2], then: [u64; 2]| [0, 1].map(|i| now[i].checked_sub(then[i]).unwrap_or(now[i]));
        let moved = Counters {
            sectors: since(look.counters.sectors, earlier.counters.sectors),
            requests: since(look.counters.requests, earlier.counters.requests),
        };
        if moved != Counters::default() {
            changes.push(Change { minor: *minor, what: What::Moved(moved) });
        }
    }
    changes
}

impl Change {
    fn text(&self, form: Form) -> String {
        let minor = self.minor;
        if form == Form::Json {
            let value = match &self.what {
                What::Is(state, path) => json!({ "minor": minor, "state": state, "args": path }),
                What::Gone => json!({ "minor": minor, "gone": true }),
                What::Moved(Counters { sectors, requests }) => {
                    json!({ "minor": minor, "secs": sectors, "reqs": requests })
                }
            };
            return format!("{value}\n");
        }
        match &self.what {
            What::Is(state, path) if path.is_empty() => format!("minor={minor} state={}\n", hex(*state)),
            What::Is(state, path) => format!("minor={minor} state={} args={path}\n", hex(*state)),
            What::Gone => format!("minor={minor} gone\n"),
            What::Moved(Counters { sectors: [read, written], requests: [taken, answered] }) => {
                format!("minor={minor} secs={read},{written} reqs={taken},{answered}\n")
            }
        }
    }
}

fn failure(form: Form, minor: u16, why: &Failure) -> String {
    let number = why.errno().raw_os_error();
    match form {
        Form::Json => format!("{}\n", json!({ "minor": minor, "error": number, "message": why.to_string() })),
        Form::Lines | Form::Table => format!("minor={minor} error={number} {why}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(minor: u16, state: u32, path: &str, sectors: [u64; 2], requests: [u64; 2]) -> (u16, Look) {
        let vbd = Vbd { minor, state, path: path.to_owned() };
        (minor, Look { vbd, counters: Counters { sectors, requests } })
    }

    #[test]
    fn only_what_changed_is_told() {
        let first = BTreeMap::from([seen(0, 0, "aio:/a", [10, 20], [1, 1]), seen(1, 2, "", [0, 0], [0, 0])]);
        let second = BTreeMap::from([seen(0, 0, "aio:/a", [18, 20], [2, 2]), seen(3, 0, "ram:4M", [5, 5], [0, 0])]);
        let text = |before: &BTreeMap<u16, Look>, now: &BTreeMap<u16, Look>, form| {
            changes(before, now).iter().map(|change| change.text(form)).collect::<String>()
        };
        assert_eq!(text(&BTreeMap::new(), &first, Form::Lines), "minor=0 state=0 args=aio:/a\nminor=1 state=0x2\n");
        assert_eq!(
            text(&first, &second, Form::Lines),
            "minor=1 gone\nminor=0 secs=8,0 reqs=1,1\nminor=3 state=0 args=ram:4M\n"
        );
        assert_eq!(text(&second, &second, Form::Lines), "");
        // Opened anew: the counters began at 0 again.
        let third = BTreeMap::from([seen(0, 0x2a, "vhd:/b", [3, 4], [0, 0]), seen(3, 0, "ram:4M", [5, 5], [0, 0])]);
        assert_eq!(
            text(&second, &third, Form::Json),
            "{\"minor\":0,\"state\":42,\"args\":\"vhd:/b\"}\n{\"minor\":0,\"secs\":[3,4],\"reqs\":[0,0]}\n"
        );
    }

    #[test]
    fn counters_of_tapdisks_json() {
        // As tapdisk writes them, without and with a ring.
        let plain = br#"{ "name": "vhd:/p/a.vhd", "secs": [ 16, 8 ], "images": [ ], "read_caching": "false" }"#;
        assert_eq!(counters(plain), Some(Counters { sectors: [16, 8], requests: [0, 0] }));
        let ring = br#"{ "secs": [ 16, 8 ], "xenbus": { "pool": "td-xenio-default", "reqs": [ 7, 6 ] } }"#;
        assert_eq!(counters(ring), Some(Counters { sectors: [16, 8], requests: [7, 6] }));
        for wrong in [b"".as_slice(), b"[]", b"{}", br#"{ "secs": [ 1 ] }"#, br#"{ "secs": [ -1, 2 ] }"#] {
            assert_eq!(counters(wrong), None);
        }
    }

    #[test]
    fn failures_name_the_vbd() {
        let why = Failure::new(Errno::IO, "/dev/xvda: write failed");
        assert_eq!(failure(Form::Lines, 3, &why), "minor=3 error=5 /dev/xvda: write failed\n");
        assert_eq!(failure(Form::Json, 3, &why), "{\"minor\":3,\"error\":5,\"message\":\"/dev/xvda: write failed\"}\n");
    }
}
