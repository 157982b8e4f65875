//! Runs inside a test boot and nowhere else: init of dom0 and of the guests, and dom0's hotplug script for disks.

use std::process::ExitCode;

use tools::agent::{dom0, guest, hotplug, init, system};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let called = words.first().map_or("", String::as_str);
    let role = words.get(1).map_or("", String::as_str);
    let done = if called.ends_with("/block") {
        hotplug::main(role)
    } else if called.ends_with("/poweroff") {
        system::power_off()
    } else if called.ends_with("/reboot") {
        system::restart()
    } else if std::process::id() == 1 {
        init::main()
    } else if role == "dom0" {
        dom0::main()
    } else if role == "guest" {
        guest::main()
    } else {
        eprintln!("agent: this program is init of the test boots' domains; see docs/testing.md");
        return ExitCode::FAILURE;
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
