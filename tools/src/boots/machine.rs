//! One run of QEMU: Xen with dom0 on an emulated machine, both serial ports, and a time-out that nothing escapes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::parts::{Parts, QEMU};

/// Each of these in the console's log is the end of the boot, though QEMU would go on for ever.
const DEATHS: [&str; 3] = ["Kernel panic - not syncing", "Panic on CPU", "Hardware Dom0 halted"];

/// What the machine has.
#[derive(Clone, Copy)]
pub struct Hardware {
    /// Processors.
    pub processors: usize,
    /// Mebibytes of memory.
    pub memory: u32,
}

impl Hardware {
    /// Where nothing is measured.
    pub const ORDINARY: Hardware = Hardware { processors: 2, memory: 3072 };
}

/// A boot to be run.
pub struct Machine<'a> {
    /// Debian's parts: the hypervisor and the kernel.
    pub parts: &'a Parts,
    /// dom0's initramfs.
    pub image: &'a Path,
    /// Where the console of Xen and dom0's kernel is kept.
    pub log: PathBuf,
    /// Where the lines of the agent are kept.
    pub report: PathBuf,
    /// Xen then shows what guests write to the debug port, at a price.
    pub guest_debug: bool,
    /// One instruction is one nanosecond of the machine's time, whatever else the host does.
    pub counted: bool,
    /// The plugin that counts instructions, and where it writes them.
    pub counts: Option<(&'a Path, &'a Path)>,
    /// What it runs on.
    pub hardware: Hardware,
    /// After this QEMU is ended, whatever it does.
    pub limit: Duration,
}

/// Whether the second serial port has become a shell's.
#[derive(Debug, PartialEq, Eq)]
pub enum Shell {
    /// The next lines are a report's still.
    NotYet,
    /// What follows is the shell's.
    Opens,
}

/// How a boot ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// dom0 powered the machine off.
    PoweredOff,
    /// Xen or dom0's kernel died with these words.
    Died(String),
    /// The time-out came first.
    TimedOut,
    /// QEMU itself failed.
    Qemu(String),
}

impl Machine<'_> {
    /// Runs the boot, giving every line of the agent to `each`.
    pub fn run(&self, mut each: impl FnMut(&str)) -> Result<Ending> {
        for file in [&self.log, &self.report] {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
        }
        File::create(&self.log)?;
        let mut kept = File::create(&self.report)?;
        let mut qemu =
            Running::start(self.command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let lines = lines_of(qemu.0.stdout.take().context("QEMU's output")?);
        let complaints = lines_of(qemu.0.stderr.take().context("QEMU's complaints")?);
        let started = Instant::now();
        let mut console = Tail::new(&self.log);
        loop {
            match lines.recv_timeout(Duration::from_millis(500)) {
                Ok(line) => {
                    writeln!(kept, "{line}")?;
                    each(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(death) = console.find(&DEATHS)? {
                        return Ok(Ending::Died(death));
                    }
                }
            }
            if started.elapsed() > self.limit {
                return Ok(Ending::TimedOut);
            }
        }
        let status = qemu.0.wait()?;
        if !status.success() {
            let said: Vec<String> = complaints.iter().collect();
            return Ok(Ending::Qemu(format!("{QEMU} ended with {status}: {}", said.join(" "))));
        }
        Ok(console.find(&DEATHS)?.map_or(Ending::PoweredOff, Ending::Died))
    }

    /// Runs the boot with the keyboard on the second serial port. Lines go to `each` until it says that the port is a
    /// shell's now; from then on every byte goes to the terminal as it comes.
    pub fn run_with_terminal(&self, mut each: impl FnMut(&str) -> Shell) -> Result<()> {
        File::create(&self.log)?;
        let mut qemu = Running::start(self.command().stdout(Stdio::piped()))?;
        let mut port = BufReader::new(qemu.0.stdout.take().context("QEMU's output")?);
        let mut line = Vec::new();
        while port.read_until(b'\n', &mut line)? > 0 {
            if each(String::from_utf8_lossy(&line).trim_end()) == Shell::Opens {
                break;
            }
            line.clear();
        }
        let mut terminal = std::io::stdout().lock();
        loop {
            let bytes = port.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            terminal.write_all(bytes)?;
            terminal.flush()?;
            let count = bytes.len();
            port.consume(count);
        }
        qemu.0.wait()?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        // A second, outer limit: it holds even when this program is killed and cannot end QEMU.
        command.args(["--foreground", "--kill-after=5", &(self.limit.as_secs() + 5).to_string(), QEMU]);
        // PVH domains need nested paging; the rest of the choice is what Debian's Xen and PV Linux boot on under TCG.
        command.args(["-cpu", "qemu64,+svm,+npt"]);
        let Hardware { processors, memory } = self.hardware;
        command.args(["-smp", &processors.to_string(), "-m", &memory.to_string()]);
        if let Some((plugin, counts)) = self.counts {
            command.arg("-plugin").arg(format!("file={},out={}", plugin.display(), counts.display()));
        }
        if self.counted {
            command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
            command.args(["-rtc", "base=2026-01-01,clock=vm"]);
        } else {
            command.args(["-accel", "tcg,thread=multi"]);
        }
        command.args(["-display", "none", "-no-reboot", "-net", "none"]);
        command.arg("-serial").arg(format!("file:{}", self.log.display()));
        // "mon" makes Ctrl-A x end QEMU, and lets Ctrl-C through to a shell in dom0.
        command.args(["-serial", "mon:stdio"]);
        command.arg("-kernel").arg(self.parts.xen());
        let mut xen = String::from("console=com1 dom0_mem=1536M dom0_max_vcpus=1 dom0_vcpus_pin conring_size=512k");
        if self.guest_debug {
            xen.push_str(" loglvl=all guest_loglvl=all");
        }
        command.args(["-append", &xen]);
        // The agent is init. No comma may be in a module's arguments: it would start another module.
        let kernel = format!("{} console=hvc0 quiet panic=1 rdinit=/init", self.parts.vmlinux().display());
        command.arg("-initrd").arg(format!("{kernel},{}", self.image.display()));
        command
    }
}

/// QEMU, which must not outlive us.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Running> {
        Ok(Running(command.spawn().context("starting QEMU under `timeout`")?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Some(pid)) = (self.0.try_wait(), Pid::from_raw(self.0.id() as i32)) {
            // `timeout` hands the signal on to QEMU; killing it outright would leave QEMU behind. It can only fail if
            // the process is gone, which is what is wanted.
            let _ = kill_process(pid, Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

fn lines_of(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// Looks for words in a growing file, reading each byte once.
struct Tail<'a> {
    path: &'a Path,
    read: u64,
    rest: String,
}

impl<'a> Tail<'a> {
    fn new(path: &'a Path) -> Tail<'a> {
        Tail { path, read: 0, rest: String::new() }
    }

    /// The first whole line with one of these words since the last look.
    fn find(&mut self, words: &[&str]) -> Result<Option<String>> {
        let mut file = File::open(self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        self.read += bytes.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let mut found = None;
        while let Some(end) = self.rest.find('\n') {
            let line: String = self.rest.drain(..=end).collect();
            if found.is_none() && words.iter().any(|word| line.contains(word)) {
                found = Some(line.trim().to_owned());
            }
        }
        Ok(found)
    }
}

/// The last lines of a log, for the message about a failure.
pub fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_found_once_and_only_when_its_line_is_whole() {
        let path = std::env::temp_dir().join(format!("boots-tail-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        let mut tail = Tail::new(&path);
        assert_eq!(tail.find(&DEATHS).unwrap(), None);
        write!(file, "fine\n(XEN) Panic on C").unwrap();
        assert_eq!(tail.find(&DEATHS).unwrap(), None);
        writeln!(file, "PU 0:").unwrap();
        assert_eq!(tail.find(&DEATHS).unwrap().as_deref(), Some("(XEN) Panic on CPU 0:"));
        assert_eq!(tail.find(&DEATHS).unwrap(), None);
        assert_eq!(last_lines(&path, 1), "(XEN) Panic on CPU 0:");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_process_that_does_not_end_is_ended() {
        let mut sleeper = Command::new("timeout");
        sleeper.args(["--foreground", "60", "sleep", "60"]);
        let running = Running::start(&mut sleeper).unwrap();
        let started = Instant::now();
        drop(running);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn lines_are_given_without_their_ends_and_the_last_needs_none() {
        let lines: Vec<String> = lines_of(&b"one\r\ntwo\n\xffthree"[..]).iter().collect();
        assert_eq!(lines, ["one", "two", "\u{fffd}three"]);
    }
}
