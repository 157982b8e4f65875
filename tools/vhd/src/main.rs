//! Makes, checks and mends VHD images. What is done is in the library, see there.

use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use rustix::io::Errno;

use protocol::tapdisk::Dialect;
use tap_ctl::arguments::CHANNEL;
use tap_ctl::dom0::{self, Dom0};
use tap_ctl::host::Target;
use vhd::arguments::{Arguments, Command};
use vhd::commands;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it is printed depends on what it is; that it cannot be printed is no other failure.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(Errno::INVAL.raw_os_error() as u8),
            };
        }
    };
    if let Command::Completions { shell } = &arguments.command {
        clap_complete::generate(*shell, &mut Arguments::command(), "vhd", &mut io::stdout());
        return ExitCode::SUCCESS;
    }
    // blktap's dialect is what `tap-ctl` speaks by default, and its channel.
    let dom0 = Dom0 { dialect: Dialect::Blktap };
    let domains = match &arguments.socket {
        Some(path) => Some(Target::Socket(path.clone())),
        None if arguments.domain.is_some() || dom0::is_here() => {
            Some(Target::Domains { host: &dom0, asked: arguments.domain.as_deref(), channel: CHANNEL })
        }
        None => None,
    };
    match commands::run(&arguments, domains.as_ref(), &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vhd: {failure}");
            ExitCode::from(failure.status())
        }
    }
}
