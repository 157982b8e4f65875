//! dom0's `tap-ctl`, and the disks that a toolstack would make for its xenio.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{Said, ask, run};
use super::store;
use super::system::wait_for_path;

/// Debian's, of its package xen-utils.
const PROXY: &str = "/usr/lib/xen-4.17/bin/vchan-socket-proxy";

/// It has limits of its own, of 10 s at most where nothing has to drain.
const TAP_CTL: Duration = Duration::from_secs(60);

/// Runs it; an unhappy exit status is an answer.
pub fn asked(words: &[&str]) -> Result<Said> {
    ask(&[&["tap-ctl"], words].concat(), TAP_CTL)
}

/// Runs it; it must succeed. Gives what it printed.
pub fn done(words: &[&str]) -> Result<String> {
    run(&[&["tap-ctl"], words].concat(), TAP_CTL)
}

/// One of its daemons, `serve` or `xenio`, until this is dropped.
pub struct Daemon(Child);

impl Daemon {
    /// Starts it. What it says goes to dom0's console.
    pub fn start(words: &[&str]) -> Result<Daemon> {
        Daemon::of("tap-ctl", words)
    }

    /// libxenvchan's own client: a UNIX socket that leads to a vchan, for one connection after the other.
    pub fn proxy(domain: u32, channel: &str, socket: &str) -> Result<Daemon> {
        let path = format!("/local/domain/{domain}/{channel}");
        let daemon = Daemon::of(PROXY, &["--mode=client", &domain.to_string(), &path, socket])?;
        wait_for_path(socket, TAP_CTL)?;
        Ok(daemon)
    }

    fn of(program: &str, words: &[&str]) -> Result<Daemon> {
        let child = Command::new(program).args(words).stdin(Stdio::null()).spawn();
        child.map(Daemon).with_context(|| format!("starting {program} {}", words.join(" ")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, which its work will have shown.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A disk in dom0's own area of xenstore, for xenio: made of a minor of a storage domain, for a device of a guest.
pub struct Vbd3 {
    /// The storage domain: the guest grants its ring to it.
    pub storage: u32,
    /// Its VBD.
    pub minor: u16,
    /// Whose disk.
    pub guest: u32,
    /// Which of its disks.
    pub devid: u32,
    /// `r` or `w`.
    pub mode: &'static str,
}

impl Vbd3 {
    /// The backend's directory.
    pub fn backend(&self) -> String {
        format!("/local/domain/0/backend/vbd3/{}/{}", self.guest, self.devid)
    }

    /// The frontend's directory.
    pub fn frontend(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.guest, self.devid)
    }

    /// Makes it. A guest looks at a directory as soon as it is there, so the backend's is whole before the frontend's
    /// begins.
    pub fn make(&self) -> Result<()> {
        let (backend, frontend) = (self.backend(), self.frontend());
        let image = format!("/run/blktap-control/nbd{}.{}", self.storage, self.minor);
        write(
            &backend,
            &[
                ("frontend", &frontend),
                ("frontend-id", &self.guest.to_string()),
                ("online", "1"),
                ("mode", self.mode),
                ("device-type", "disk"),
                ("physical-device-path", &image),
                ("hotplug-status", "connected"),
                ("state", "1"),
            ],
        )?;
        run(&["xenstore-chmod", "-r", &backend, "n0", &format!("r{}", self.guest)], TAP_CTL)?;
        write(
            &frontend,
            &[
                ("backend", &backend),
                ("backend-id", &self.storage.to_string()),
                ("virtual-device", &self.devid.to_string()),
                ("device-type", "disk"),
                ("state", "1"),
            ],
        )?;
        run(&["xenstore-chmod", "-r", &frontend, &format!("n{}", self.guest), "r0"], TAP_CTL).map(drop)
    }

    /// Asks the guest to let go, as libxl does.
    pub fn close(&self) -> Result<()> {
        write(&self.backend(), &[("online", "0"), ("state", "5")])
    }

    /// Removes what was made.
    pub fn remove(&self) -> Result<()> {
        store::remove(&self.frontend())?;
        store::remove(&self.backend())
    }
}

/// Writes nodes of a directory in one go.
fn write(folder: &str, nodes: &[(&str, &str)]) -> Result<()> {
    let words: Vec<String> =
        nodes.iter().flat_map(|(name, value)| [format!("{folder}/{name}"), (*value).to_owned()]).collect();
    let mut command = vec!["xenstore-write"];
    command.extend(words.iter().map(String::as_str));
    run(&command, TAP_CTL).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_disk_is() {
        let disk = Vbd3 { storage: 5, minor: 3, guest: 7, devid: 51712, mode: "w" };
        assert_eq!(disk.backend(), "/local/domain/0/backend/vbd3/7/51712");
        assert_eq!(disk.frontend(), "/local/domain/7/device/vbd/51712");
    }
}
