//! Process 1: starts the role's work as a child, buries what dies, and powers off when the work is done.
//!
//! The work is a child because the death of process 1 is a kernel panic, and a failed test is not one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitOptions, wait};

use super::system;
use crate::report::JOB_PATH;

/// Prepares the machine and sees the work through.
pub fn main() -> Result<()> {
    system::mount_kernel_file_systems()?;
    system::load_modules()?;
    let role = if Path::new(JOB_PATH).exists() { "dom0" } else { "guest" };
    let worker = Command::new("/init")
        .arg(role)
        .env("PATH", "/usr/bin:/bin:/tools/bin")
        .env("LD_LIBRARY_PATH", "/tools/lib")
        .spawn()
        .with_context(|| format!("starting the {role} agent"))?;
    let worker = Pid::from_raw(worker.id() as i32);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == worker => {
                println!("agent: {role} ended with {status:?}");
                return system::power_off();
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the agent"),
        }
    }
}
