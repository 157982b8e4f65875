//! Runs other programs, never without a limit: a program that hangs is a finding, not the end of the boot.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// The exit status; what a signal ended has none.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Said {
    /// Whether the program was content.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Everything it said, for a message.
    pub fn words(&self) -> String {
        format!("{}\n{}", self.err.trim(), self.out.trim()).trim().to_owned()
    }
}

/// Runs a program to its end, at most `limit` long. An unhappy exit status is an answer, not an error.
pub fn ask(words: &[&str], limit: Duration) -> Result<Said> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    ask_command(&mut command, limit)
}

/// As [`ask`], for a command that needs more than words.
pub fn ask_command(command: &mut Command, limit: Duration) -> Result<Said> {
    let name = format!("{command:?}").replace('"', "");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name}: cannot be started"))?;
    // The pipes are read while it runs (a full pipe would stop it) and by nobody's waiting: a daemon that inherited
    // them would keep them open for ever.
    let mut out = gather(child.stdout.take());
    let mut err = gather(child.stderr.take());
    let code = match wait(&mut child, limit)? {
        Some(code) => code,
        None => {
            child.kill()?;
            child.wait()?;
            bail!(
                "{name}: not finished after {} s; so far it said: {}",
                limit.as_secs(),
                (out.take() + &err.take()).trim()
            );
        }
    };
    Ok(Said { code, out: out.take(), err: err.take(), took: started.elapsed() })
}

/// Runs a program that must succeed, and gives its standard output.
pub fn run(words: &[&str], limit: Duration) -> Result<String> {
    let said = ask(words, limit)?;
    if !said.ok() {
        bail!("{} ended with {:?}: {}", words.join(" "), said.code, said.words());
    }
    Ok(said.out)
}

/// Waits for the end of a child: its exit status, or `None` at the limit.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<Option<i32>>> {
    let pid = Pid::from_raw(child.id() as i32).context("a child without an id")?;
    let fd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        let ready = match poll(&mut fds, Some(&timespec(left))) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if ready > 0 {
            return Ok(Some(child.wait()?.code()));
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

/// How long a reader waits for more before it looks whether its program has ended.
const LOOK: Duration = Duration::from_millis(20);

/// A pipe's content, collected in the background.
struct Gathered {
    reader: Option<JoinHandle<()>>,
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

impl Gathered {
    /// What has come, now that the program has ended: all that it wrote, however late the reader comes to run. The end of the
    /// pipe is not waited for.
    fn take(&mut self) -> String {
        self.ended.store(true, Ordering::Release);
        // One that panicked has told so.
        let _ = self.reader.take().map(JoinHandle::join);
        let bytes = self.bytes.lock().map(|bytes| bytes.clone()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn gather(pipe: Option<impl Read + AsFd + Send + 'static>) -> Gathered {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let ended = Arc::new(AtomicBool::new(false));
    let reader = pipe.map(|mut pipe| {
        let (into, ended) = (bytes.clone(), ended.clone());
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                // Asked before the pipe is looked at: what a program wrote that has ended is there to be seen.
                let over = ended.load(Ordering::Acquire);
                let limit = timespec(if over { Duration::ZERO } else { LOOK });
                match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&limit)) {
                    Ok(0) if over => return,
                    Ok(0) | Err(Errno::INTR) => continue,
                    Ok(_) => {}
                    Err(_) => return,
                }
                let Ok(length @ 1..) = pipe.read(&mut chunk) else { return };
                if let Ok(mut bytes) = into.lock() {
                    bytes.extend_from_slice(&chunk[..length]);
                }
            }
        })
    });
    Gathered { reader, bytes, ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn what_it_said_and_how_it_ended() {
        let said = ask(&["sh", "-c", "echo out; echo err >&2; exit 3"], SOON).unwrap();
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(3), "out\n", "err\n"));
        assert_eq!(run(&["echo", "hello"], SOON).unwrap(), "hello\n");
        assert!(run(&["false"], SOON).is_err());
    }

    #[test]
    fn a_program_that_hangs_is_told_with_what_it_said() {
        let error = ask(&["sh", "-c", "echo begun; exec sleep 60"], Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("not finished") && error.to_string().contains("begun"), "{error}");
    }

    #[test]
    fn a_daemon_that_keeps_the_pipes_does_not_hold_us() {
        let said = ask(&["sh", "-c", "sleep 30 & echo gone"], SOON).unwrap();
        assert_eq!(said.out, "gone\n");
        assert!(said.took < SOON);
    }
}
