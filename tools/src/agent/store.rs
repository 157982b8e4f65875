//! xenstore, through Xen's own programs: the judge shall not share code with what it judges.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::{ask, run};

/// xenstored answers at once or something is badly wrong.
const PROMPT: Duration = Duration::from_secs(20);

/// The value of a node.
pub fn read(path: &str) -> Result<String> {
    Ok(run(&["xenstore-read", path], PROMPT)?.trim_end_matches('\n').to_owned())
}

/// The value of a node that may not be there.
pub fn look(path: &str) -> Result<Option<String>> {
    let said = ask(&["xenstore-read", path], PROMPT)?;
    Ok(said.ok().then(|| said.out.trim_end_matches('\n').to_owned()))
}

/// Writes a node.
pub fn write(path: &str, value: &str) -> Result<()> {
    run(&["xenstore-write", path, value], PROMPT).map(drop)
}

/// Removes a node with everything below it, if it is there.
pub fn remove(path: &str) -> Result<()> {
    ask(&["xenstore-rm", path], PROMPT).map(drop)
}

/// The names of a node's children; a node that is not there has none.
pub fn list(path: &str) -> Result<Vec<String>> {
    let said = ask(&["xenstore-list", path], PROMPT)?;
    Ok(if said.ok() { said.out.lines().map(str::to_owned).collect() } else { Vec::new() })
}

/// A whole subtree as text, for a message.
pub fn tree(path: &str) -> String {
    ask(&["xenstore-ls", "-f", path], PROMPT).map(|said| said.words()).unwrap_or_else(|error| error.to_string())
}

/// A watch on a path: tells of every change below it.
pub struct Watch {
    child: Child,
    events: Receiver<String>,
    path: String,
}

impl Watch {
    /// Begins to watch. xenstore tells of the watch itself at once, so no change between a look and the watch is lost.
    pub fn new(path: &str) -> Result<Watch> {
        let mut child = Command::new("xenstore-watch")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting xenstore-watch")?;
        let out = child.stdout.take().context("xenstore-watch's output")?;
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { child, events, path: path.to_owned() })
    }

    /// Waits for the next event.
    pub fn next(&self, limit: Duration) -> Result<Option<String>> {
        match self.events.recv_timeout(limit) {
            Ok(path) => Ok(Some(path)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("xenstore-watch {} ended by itself", self.path),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may be gone already, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the value of `path` pleases, and gives it. `what` names what is waited for, should it not come.
pub fn wait_for(
    path: &str,
    what: &str,
    limit: Duration,
    mut pleases: impl FnMut(Option<&str>) -> bool,
) -> Result<Option<String>> {
    let watch = Watch::new(path)?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = watch.next(left)?;
        let value = look(path)?;
        if pleases(value.as_deref()) {
            return Ok(value);
        }
        if event.is_none() {
            bail!("{what}: not so after {} s; {path} is {value:?}", limit.as_secs());
        }
    }
}
