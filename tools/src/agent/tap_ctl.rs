//! dom0's `tap-ctl`, and the disks that a toolstack would make for its xenio.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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

/// Gives back all minors that were set apart: nobody else does when domains are destroyed.
pub fn forget_markers() -> Result<()> {
    match fs::remove_dir_all("/run/blktap-control") {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("removing the markers of minors"),
        _ => Ok(()),
    }
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

/// Messages of blktap's dialect over a socket, and when they were sent and answered. Of the layout only what PAUSE and
/// RESUME need.
pub struct Messages(UnixStream);

impl Messages {
    const BYTES: usize = 544;
    const PAUSE: u8 = 9;
    const RESUME: u8 = 11;

    /// Over this socket.
    pub fn connect(socket: &str) -> Result<Messages> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {socket}"))?;
        stream.set_read_timeout(Some(TAP_CTL))?;
        Ok(Messages(stream))
    }

    /// PAUSE, with the moments before and after it.
    pub fn pause(&mut self, minor: u16) -> Result<(Instant, Instant)> {
        self.ask(Messages::PAUSE, minor, "")
    }

    /// RESUME, onto another image if one is named.
    pub fn resume(&mut self, minor: u16, image: &str) -> Result<(Instant, Instant)> {
        self.ask(Messages::RESUME, minor, image)
    }

    fn ask(&mut self, kind: u8, minor: u16, image: &str) -> Result<(Instant, Instant)> {
        let mut bytes = [0; Messages::BYTES];
        bytes[0] = kind;
        bytes[2..4].copy_from_slice(&minor.to_le_bytes());
        bytes[20..20 + image.len()].copy_from_slice(image.as_bytes());
        // prt_devnum: none.
        bytes[276..280].fill(0xff);
        let sent = Instant::now();
        self.0.write_all(&bytes)?;
        self.0.read_exact(&mut bytes)?;
        let answered = Instant::now();
        ensure!(bytes[0] == kind + 1 && bytes[8..12] == [0; 4], "message {kind} is answered by {bytes:02x?}");
        Ok((sent, answered))
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

    /// Makes it. Who may see a directory looks at it as soon as it has a state, so the backend's is whole before the
    /// frontend's begins, and each has its permissions, which its nodes inherit, before it has nodes.
    pub fn make(&self) -> Result<()> {
        let (backend, frontend) = (self.backend(), self.frontend());
        let (guest, image) = (self.guest, format!("/run/blktap-control/nbd{}.{}", self.storage, self.minor));
        folder(&backend, &["n0", &format!("r{guest}")])?;
        write(
            &backend,
            &[
                ("frontend", &frontend),
                ("frontend-id", &guest.to_string()),
                ("online", "1"),
                ("mode", self.mode),
                ("device-type", "disk"),
                ("physical-device-path", &image),
                ("hotplug-status", "connected"),
                ("state", "1"),
            ],
        )?;
        folder(&frontend, &[&format!("n{guest}"), "r0"])?;
        write(
            &frontend,
            &[
                ("backend", &backend),
                ("backend-id", &self.storage.to_string()),
                ("virtual-device", &self.devid.to_string()),
                ("device-type", "disk"),
                ("state", "1"),
            ],
        )
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

/// Makes a directory with its permissions.
fn folder(path: &str, permissions: &[&str]) -> Result<()> {
    store::write(path, "")?;
    run(&[&["xenstore-chmod", path], permissions].concat(), TAP_CTL).map(drop)
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
