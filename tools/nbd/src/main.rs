//! An NBD server over the engine that the storage domain has, for tests and benchmarks alone: one client after the other,
//! over a Unix socket, that is not hostile. `make bench-nbd` puts it beside QEMU's and nbdkit's.
//!
//! # Layout
//! - [`wire`]: the numbers of the protocol; [`handshake`]: until a client has its disk; [`session`]: its requests
//! - [`bench`](mod@bench): servers side by side under fio
#![forbid(unsafe_code)]

mod bench;
mod handshake;
mod session;
mod wire;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use drivers::disk::Device;
use vhd::disk;
use vhd::store::{Access, FileStore};

/// Serves images of this host by NBD, and compares servers.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serves an image, to one client after the other.
    Serve {
        /// What the image is.
        #[arg(long, value_enum, default_value = "vhd")]
        format: Format,
        /// Refuses writes.
        #[arg(long)]
        read_only: bool,
        /// Ends after so many clients.
        #[arg(long)]
        clients: Option<usize>,
        /// The image; of a chain the leaf.
        image: PathBuf,
        /// The socket, which must not be there yet.
        socket: PathBuf,
    },
    /// Puts servers side by side and prints the ratios.
    Bench(bench::Options),
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Vhd,
    Raw,
}

fn main() -> Result<()> {
    match Options::parse().command {
        Verb::Serve { format, read_only, clients, image, socket } => {
            let access = if read_only { Access::Read } else { Access::Write };
            match format {
                Format::Vhd => serve(&disk::open(&image, access, Access::Read)?, &socket, clients),
                Format::Raw => serve(&FileStore::open(&image, access)?, &socket, clients),
            }
        }
        Verb::Bench(options) => bench::bench(&options),
    }
}

fn serve(disk: &impl Device, socket: &Path, clients: Option<usize>) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("{}: listen", socket.display()))?;
    for client in listener.incoming().take(clients.unwrap_or(usize::MAX)) {
        if let Err(error) = converse(disk, client?) {
            eprintln!("nbd: a client: {error:#}");
        }
        // Whoever looks at the image next finds it whole.
        disk::flush(disk).map_err(|error| anyhow::anyhow!("flush: {error}"))?;
    }
    Ok(())
}

fn converse(disk: &impl Device, mut client: UnixStream) -> Result<()> {
    match handshake::shake(&disk.info(), &mut client)? {
        true => session::Session::new(disk, client)?.run(),
        false => Ok(()),
    }
}
