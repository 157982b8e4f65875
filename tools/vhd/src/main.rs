//! Makes, checks and mends VHD images. What is done is in the library, see there.

use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use rustix::io::Errno;

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
    match commands::run(&arguments, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vhd: {failure}");
            ExitCode::from(failure.status())
        }
    }
}
