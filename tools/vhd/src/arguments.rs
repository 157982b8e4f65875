//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use protocol::number;

const NOTES: &str = "\
SIZE is a number of bytes with K, M, G or T (powers of 1024), rounded up to whole sectors of 512 bytes.

An image is a file or a block device. Its parents are looked for in its own folder or volume group, whatever the image
says of other places. What is written is locked, and refused while another process has it open for writing; so is what is
checked. Of a logical volume all storage domains of this host are asked. Nobody can know what another host does.

Exit status: 0, or the error number of errno(3): 2 no such file, 16 in use, 22 wrong usage or a bad image, 28 no room.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "vhd", version, about = "Makes, checks and mends VHD images", after_help = NOTES, max_term_width = 120)]
pub struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// The storage domain that is meant, by name or number; else the only one
    #[arg(long, global = true, value_name = "NAME|ID")]
    pub domain: Option<String>,
    /// A UNIX socket instead, as tapdisk and `tap-ctl serve` have it
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "domain")]
    pub socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an empty disk; a file is made, a block device must be there
    Create(Create),
    /// Make an empty image on top of another one
    Snapshot(Snapshot),
    /// Tell what an image is
    Query(Query),
    /// Tell what is wrong with an image, for everyone, for blktap or for QEMU
    Check(Check),
    /// Mend the footer from its copy or the copy from the footer, and a batmap that is none
    Repair {
        /// The image
        image: PathBuf,
        /// Under whom
        #[command(flatten)]
        under: Under,
    },
    /// Make a disk larger
    Resize {
        /// The image
        image: PathBuf,
        /// The new size
        #[arg(value_parser = size)]
        size: u64,
        /// Under whom
        #[command(flatten)]
        under: Under,
    },
    /// Write what an image holds into its parent
    Coalesce {
        /// The image, which stays as it is
        image: PathBuf,
        /// The image is what this minor of a storage domain has open: hold it, and let it go on on the parent
        #[arg(long, value_name = "N")]
        minor: Option<u16>,
    },
    /// Print fields of an image, all or those named
    Read {
        /// The image
        image: PathBuf,
        /// Which
        fields: Vec<Field>,
    },
    /// Change a field of an image
    Set {
        /// The image
        image: PathBuf,
        /// Which
        field: Settable,
        /// What it is to be
        value: String,
        /// Under whom
        #[command(flatten)]
        under: Under,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Who serves the image.
#[derive(Args, Clone, Copy, Debug)]
pub struct Under {
    /// The image is what this minor of a storage domain has open: hold it meanwhile
    #[arg(long, value_name = "N")]
    pub minor: Option<u16>,
}

/// What to create.
#[derive(Args, Debug)]
pub struct Create {
    /// The image
    pub image: PathBuf,
    /// Size of the disk
    #[arg(value_parser = size)]
    pub size: u64,
    /// All sectors at once, in one piece
    #[arg(long, conflicts_with = "block")]
    pub fixed: bool,
    /// Size of a block, a power of two from 4K to 64M; blktap reads none above 2M
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "2M")]
    pub block: u64,
    /// Even if there is an image on the block device
    #[arg(long)]
    pub force: bool,
}

/// What to snapshot.
#[derive(Args, Debug)]
pub struct Snapshot {
    /// The new image
    pub image: PathBuf,
    /// What it is on top of, in the same folder or volume group
    pub parent: PathBuf,
    /// The parent is no VHD
    #[arg(long)]
    pub raw: bool,
    /// Another size of the disk than the parent's
    #[arg(long, value_parser = size, conflicts_with = "minor")]
    pub size: Option<u64>,
    /// The parent is what this minor of a storage domain has open: hold it, and let it go on on the new image
    #[arg(long, value_name = "N")]
    pub minor: Option<u16>,
    /// Even if there is an image on the block device
    #[arg(long)]
    pub force: bool,
}

/// What to query.
#[derive(Args, Debug)]
pub struct Query {
    /// The image
    pub image: PathBuf,
    /// All images below it too
    #[arg(long)]
    pub chain: bool,
}

/// What to check.
#[derive(Args, Debug)]
pub struct Check {
    /// The images
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// All images below them too
    #[arg(long)]
    pub chain: bool,
    /// Fail for damage alone, not for what blktap or QEMU refuses
    #[arg(long)]
    pub sound: bool,
    /// Read the data too: there are none where a dynamic disk's bitmap has none
    #[arg(long)]
    pub data: bool,
    /// Whatever the times say
    #[arg(long)]
    pub ignore_timestamps: bool,
    /// Even if it is being written
    #[arg(long)]
    pub share: bool,
    /// Under whom
    #[command(flatten)]
    pub under: Under,
}

/// Fields that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Field {
    Kind,
    Size,
    OriginalSize,
    Features,
    Timestamp,
    Creator,
    CreatorVersion,
    CreatorHost,
    Geometry,
    Id,
    Saved,
    Hidden,
    Block,
    Entries,
    Table,
    Marker,
    Parent,
    ParentId,
    ParentTimestamp,
}

/// Fields that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Settable {
    /// Part of a chain and no disk of its own: 0 or 1
    Hidden,
    /// A saved state belongs to it: 0 or 1
    Saved,
    /// A byte in blktap's batmap: 0 to 255
    Marker,
    /// Seconds since 2000
    Timestamp,
    /// The name of another parent that holds the same
    Parent,
}

/// Bytes of a size.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let bytes = number::u64(digits).and_then(|number| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "no size: a number of bytes above 0, perhaps with K, M, G or T".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(
            ["1", "3k", "2M", "4G", "2T"].map(size),
            [Ok(1), Ok(3 << 10), Ok(2 << 20), Ok(4 << 30), Ok(2 << 40)]
        );
        for wrong in ["", "M", "0", "-1", "1.5G", "1B", "18014398509481984K", "\u{e9}"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
