//! Drives the disks of a storage domain from dom0. What is done is in the library, see there.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use rustix::io::Errno;

use tap_ctl::arguments::{Arguments, Command};
use tap_ctl::commands::{self, Desk};
use tap_ctl::dom0::Dom0;
use tap_ctl::failure::Failure;
use tap_ctl::host::Target;
use tap_ctl::markers::Markers;
use tap_ctl::serve::daemon as serve;
use tap_ctl::show::Form;
use tap_ctl::xenio;

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
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tap-ctl: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "tap-ctl", &mut io::stdout());
            Ok(())
        }
        Command::Serve => serve::run(&Arc::new(serve::Setting {
            host: Arc::new(Dom0 { dialect: arguments.dialect() }),
            channel: arguments.channel.clone(),
            dialect: arguments.dialect(),
            control: arguments.control.clone(),
        })),
        Command::Xenio(options) => xenio::daemon::run(&xenio::Setting {
            host: &Dom0 { dialect: arguments.dialect() },
            asked: arguments.domain.as_deref(),
            channel: &arguments.channel,
            dialect: arguments.dialect(),
            root: options.root.trim_end_matches('/'),
            flush: !options.no_flush,
            debug: arguments.debug,
        }),
        _ => {
            let dom0 = Dom0 { dialect: arguments.dialect() };
            let target = match &arguments.socket {
                Some(path) => Target::Socket(path.clone()),
                None => {
                    Target::Domains { host: &dom0, asked: arguments.domain.as_deref(), channel: &arguments.channel }
                }
            };
            let form = match (arguments.json, io::stdout().is_terminal()) {
                (true, _) => Form::Json,
                (false, true) => Form::Table,
                (false, false) => Form::Lines,
            };
            let markers = Markers::below(&arguments.control);
            let (mut out, mut input) = (io::stdout(), io::stdin());
            commands::run(arguments, &mut Desk { target, markers, form, out: &mut out, input: &mut input })
        }
    }
}
