//! A guest's work: do what dom0 writes to `data/command`, answer in `data/result`. Both carry a running number, so an
//! answer cannot be taken for that of another command.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::exercise::{Exercise, Gymnast};
use super::store::{self, Watch};
use super::system::{mount_at, wait_for_path};

/// The disk of tools is the last of the sixteen classic names, out of the way of the disks under test.
pub const TOOLS_DISK: &str = "xvdp";

/// Where the guest looks for commands, below its own home.
pub const COMMAND: &str = "data/command";
/// Where it answers.
pub const RESULT: &str = "data/result";
/// Where it says that it is up.
pub const READY: &str = "data/agent";

/// The guest looks again after this time even if no event came, which costs nothing and is no polling to speak of.
const LONG: Duration = Duration::from_secs(600);

/// Serves dom0 until the domain ends.
pub fn main() -> Result<()> {
    let tools = format!("/dev/{TOOLS_DISK}");
    wait_for_path(&tools, Duration::from_secs(30))?;
    mount_at(&tools, "ext4", "/tools", MountFlags::RDONLY, c"")?;
    let watch = Watch::new(COMMAND)?;
    store::write(READY, "ready")?;
    println!("agent: ready");
    let mut gymnast = Gymnast::default();
    let mut last = String::new();
    loop {
        watch.next(LONG)?;
        let Some(command) = store::look(COMMAND)? else { continue };
        if command == last {
            continue;
        }
        println!("agent: {command}");
        let (number, words) = command.split_once(' ').context("a command with its number")?;
        let answer = match words.parse::<Exercise>().and_then(|exercise| gymnast.perform(&exercise)) {
            Ok(text) => format!("{number} ok {text}"),
            Err(error) => format!("{number} failed {error:#}"),
        };
        println!("agent: {answer}");
        store::write(RESULT, &short(&answer))?;
        last = command;
    }
}

/// A xenstore node takes 2048 bytes; the whole text is on the guest's console.
fn short(text: &str) -> String {
    text.chars().filter(|letter| *letter != '\0').take(1000).collect::<String>().replace('\n', " | ")
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn an_answer_fits_a_node() {
        assert_eq!(short("a\nb"), "a | b");
        assert!(short(&"x".repeat(9000)).len() <= 2048);
    }
}
