//! The command line: blktap's commands and letters, and the words that a storage domain needs besides.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use protocol::tapdisk::{Dialect, Protocol};

use crate::markers::CONTROL;

/// The channel that speaks blktap's dialect, below the domain's home.
pub const CHANNEL: &str = "data/tapdisk";
/// The channel on which failures are told.
pub const EVENTS: &str = "data/tapdisk-events";

const ABOUT: &str = "Drives the disks of a tapdom storage domain from dom0";

/// Headings of what every command takes.
const SERVER: &str = "Which server";
const WORK: &str = "How";

const NOTES: &str = "\
A VBD has a number, its minor. Its life: attach, open, (pause, unpause)..., close, detach; create and destroy do several
of these at once. IMAGE is TYPE:SOURCE, for instance aio:/dev/xvda, as in an xl target.

The domain is the one of --domain or -p, or else the only one that is ready. -p is what blktap's programs call the pid:
here the domain's number.

Exit status: 0, or the error number of errno(3): 2 no such thing, 16 busy, 19 no such minor or domain, 22 wrong usage or
state, 71 the server broke the protocol, 104 it ended the connection, 110 no answer in time.

Output to a terminal is for people; to anything else it is blktap's, line for line.";

const XENIO: &str = "\
For each GUEST/DEVICE below the root, a directory that the guest can read, with frontend, frontend-id, online, mode,
state 1, and the image: physical-device-path nbdDOMAIN.MINOR or tapdisk-MINOR, or params minor:MINOR. In the guest's own
directory backend names that directory, and backend-id has to be the storage domain: the guest grants its ring to it.

To take a disk away write online 0 and state 5 and wait for state 6. What is refused says why in hotplug-error.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "tap-ctl", version, about = ABOUT, after_help = NOTES, max_term_width = 120)]
pub struct Arguments {
    /// Which storage domain, by name or number
    #[arg(long, global = true, help_heading = SERVER, value_name = "NAME|ID")]
    pub domain: Option<String>,
    /// The channel, below the domain's home in xenstore or from the root
    #[arg(long, global = true, help_heading = SERVER, value_name = "PATH", default_value = CHANNEL)]
    pub channel: String,
    /// The channel's dialect; by default rfc if its name ends with -rfc
    #[arg(long, global = true, help_heading = SERVER, value_enum)]
    pub dialect: Option<Spoken>,
    /// Speak to this UNIX socket (tapdisk's own, or a proxy's) and not to a domain
    #[arg(long, global = true, help_heading = SERVER, value_name = "PATH", conflicts_with_all = ["domain", "channel"])]
    pub socket: Option<PathBuf>,
    /// The folder of blktap's markers and sockets
    #[arg(long, global = true, help_heading = WORK, value_name = "PATH", default_value = CONTROL)]
    pub control: PathBuf,
    /// Print JSON
    #[arg(long, global = true, help_heading = WORK)]
    pub json: bool,
    /// Tell every message on standard error
    #[arg(long, global = true, help_heading = WORK)]
    pub debug: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// Which layout the channel has.
    pub fn dialect(&self) -> Dialect {
        match self.dialect {
            Some(Spoken::Rfc) => Dialect::Rfc,
            Some(Spoken::Blktap) => Dialect::Blktap,
            None if self.socket.is_none() && self.channel.ends_with("-rfc") => Dialect::Rfc,
            None => Dialect::Blktap,
        }
    }

    /// The domain's number in tap-ctl's own option.
    pub fn pid(&self) -> Option<u32> {
        match &self.command {
            Command::List(list) => list.pid,
            Command::Attach(which) | Command::Detach(which) | Command::Stats(which) | Command::Info(which) => which.pid,
            Command::Open(open) => open.which.pid,
            Command::Close(close) => close.which.pid,
            Command::Destroy(hold) | Command::Pause(hold) => hold.which.pid,
            Command::Unpause(unpause) => unpause.which.pid,
            Command::Connect(connect) => connect.which.pid,
            Command::Disconnect(disconnect) => disconnect.pid,
            Command::Shutdown(shutdown) => shutdown.pid,
            Command::Trace(trace) => trace.pid,
            _ => None,
        }
    }
}

/// A dialect's name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Spoken {
    /// That of blktap today
    Blktap,
    /// That of the RFC of 2012
    Rfc,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List VBDs: of the domain that is named, or of all storage domains
    List(List),
    /// Set the lowest free minor apart and print its marker's path
    Allocate(Allocate),
    /// Give a minor back that was set apart
    Free(Minor),
    /// Print the number of the storage domain: it is there already, nothing is started
    Spawn(Spawn),
    /// Make a VBD without an image
    Attach(Which),
    /// Unmake a closed VBD
    Detach(Which),
    /// Give a VBD its image
    Open(Open),
    /// Take the image away, when what guests had asked for is done
    Close(Close),
    /// allocate, attach and open; prints the marker's path
    Create(Create),
    /// close, detach and free
    Destroy(Hold),
    /// Finish what is in flight, then hold what guests ask for
    Pause(Hold),
    /// Go on, on the same image or on another one of the same size
    Unpause(Unpause),
    /// Print a VBD's statistics, as JSON
    Stats(Which),
    /// Print a disk's size
    Info(Which),
    /// Have a ring served whose handshake somebody else does
    Connect(Connect),
    /// Have a ring let go
    Disconnect(Disconnect),
    /// Follow what goes through VBDs, and the failures below them
    Trace(Trace),
    /// End the storage domain, if nothing is attached to it
    Shutdown(Shutdown),
    /// Connect guests to VBDs: do the handshake of the disks in vbd3 directories
    #[command(after_help = XENIO)]
    Xenio(Xenio),
    /// Offer every storage domain's channel as tapdisk's socket, for programs that speak to tapdisk
    Serve,
    /// Print a shell's completions
    Completions {
        /// For which shell
        shell: Shell,
    },
}

/// A VBD of a domain.
#[derive(Args, Clone, Copy, Debug)]
pub struct Which {
    /// The domain's number
    #[arg(short, long, value_name = "DOMAIN")]
    pub pid: Option<u32>,
    /// The VBD
    #[arg(short, long)]
    pub minor: u16,
}

/// A minor, whoever has it.
#[derive(Args, Clone, Copy, Debug)]
pub struct Minor {
    /// The VBD
    #[arg(short, long)]
    pub minor: u16,
}

/// `list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Only this domain's
    #[arg(short, long, value_name = "DOMAIN")]
    pub pid: Option<u32>,
    /// Only this one
    #[arg(short, long)]
    pub minor: Option<u16>,
    /// Only images of this type, and VBDs without one
    #[arg(short = 't', long = "type")]
    pub kind: Option<String>,
    /// Only this image's, by its source, and VBDs without one
    #[arg(short, long)]
    pub file: Option<String>,
}

/// `allocate`.
#[derive(Args, Clone, Debug)]
pub struct Allocate {
    /// A device name of old; not used
    #[arg(short = 'd', hide = true)]
    pub devname: Option<String>,
}

/// `spawn`.
#[derive(Args, Clone, Debug)]
pub struct Spawn {
    /// A control group; not used: domains have none
    #[arg(short = 'c', hide = true)]
    pub slice: Option<String>,
}

/// What OPEN says of an image.
#[derive(Args, Clone, Debug)]
pub struct Image {
    /// The image
    #[arg(short = 'a', long = "args", value_name = "IMAGE")]
    pub path: String,
    /// Refuse writes
    #[arg(short = 'R', long)]
    pub read_only: bool,
    /// Through the host's page cache
    #[arg(short = 'D', long)]
    pub no_o_direct: bool,
    /// Keep what is read from the parent in the leaf
    #[arg(short = 'r', long)]
    pub lcache: bool,
    /// Read the parent through the VBD of this minor
    #[arg(short = 'e', long, value_name = "MINOR")]
    pub parent: Option<u16>,
    /// A second image: a mirror, or with -s what takes over when the first is full
    #[arg(short = '2', long, value_name = "IMAGE")]
    pub secondary: Option<String>,
    /// The second image stands by
    #[arg(short = 's', long)]
    pub standby: bool,
    /// Seconds after which a request fails that the store does not do
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u16>,
    /// Note which blocks change, in this file
    #[arg(short = 'C', long, value_name = "PATH")]
    pub log: Option<String>,
}

/// `open`.
#[derive(Args, Clone, Debug)]
pub struct Open {
    /// Which VBD.
    #[command(flatten)]
    pub which: Which,
    /// Which image.
    #[command(flatten)]
    pub image: Image,
    /// The image is encrypted: read the key, 32 or 64 bytes, from standard input
    #[arg(short = 'E', long)]
    pub encrypted: bool,
}

/// `create`.
#[derive(Args, Clone, Debug)]
pub struct Create {
    /// Which image.
    #[command(flatten)]
    pub image: Image,
    /// A device name of old; not used
    #[arg(short = 'd', hide = true)]
    pub devname: Option<String>,
    /// A control group; not used: domains have none
    #[arg(short = 'c', hide = true)]
    pub slice: Option<String>,
}

/// A VBD and how long it may take.
#[derive(Args, Clone, Copy, Debug)]
pub struct Hold {
    /// Which VBD.
    #[command(flatten)]
    pub which: Which,
    /// Give up waiting after so many seconds; it may still be done
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

impl Hold {
    /// How long.
    pub fn limit(&self) -> Option<Duration> {
        self.timeout.map(Duration::from_secs)
    }
}

/// `close`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Close {
    /// Which VBD.
    #[command(flatten)]
    pub which: Which,
    /// Do not wait for guests
    #[arg(short, long)]
    pub force: bool,
    /// Give up waiting after so many seconds; it may still be done
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// `unpause`.
#[derive(Args, Clone, Debug)]
pub struct Unpause {
    /// Which VBD.
    #[command(flatten)]
    pub which: Which,
    /// Another image of the same size
    #[arg(short = 'a', long = "args", value_name = "IMAGE")]
    pub path: Option<String>,
    /// A second image
    #[arg(short = '2', long, value_name = "IMAGE")]
    pub secondary: Option<String>,
    /// Note which blocks change, in this file
    #[arg(short = 'c', long, value_name = "PATH")]
    pub log: Option<String>,
}

/// `connect`.
#[derive(Args, Clone, Debug)]
pub struct Connect {
    /// Which VBD.
    #[command(flatten)]
    pub which: Which,
    /// Whose ring
    #[command(flatten)]
    pub ring: Ring,
    /// The grant references of its pages, 1, 2, 4 or 8
    #[arg(long, value_name = "GREF,...", value_delimiter = ',', required = true)]
    pub grefs: Vec<u32>,
    /// The guest's event channel
    #[arg(long)]
    pub port: u32,
    /// Who laid the requests out
    #[arg(long, value_enum, default_value = "x86-64")]
    pub proto: Layout,
    /// A name for memory; kept for old programs
    #[arg(long, default_value = "")]
    pub pool: String,
    /// Microseconds to look at an empty ring before sleeping
    #[arg(long, default_value_t = 0)]
    pub poll_duration: u32,
    /// Only while so many per cent of the processor are idle
    #[arg(long, default_value_t = 0)]
    pub poll_idle_threshold: u32,
}

/// A guest's device.
#[derive(Args, Clone, Copy, Debug)]
pub struct Ring {
    /// The guest's number
    #[arg(long = "guest", value_name = "DOMAIN")]
    pub domid: u16,
    /// Its device, 51712 for xvda
    #[arg(long)]
    pub devid: u32,
}

/// `disconnect`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Disconnect {
    /// The domain's number
    #[arg(short, long, value_name = "DOMAIN")]
    pub pid: Option<u32>,
    /// Whose ring
    #[command(flatten)]
    pub ring: Ring,
    /// Give up waiting after so many seconds; it may still be done
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// `enum blkif_protocol`.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "they name themselves")]
pub enum Layout {
    Native,
    #[value(name = "x86-32")]
    X86_32,
    #[value(name = "x86-64")]
    X86_64,
}

impl From<Layout> for Protocol {
    fn from(layout: Layout) -> Protocol {
        match layout {
            Layout::Native => Protocol::Native,
            Layout::X86_32 => Protocol::X86_32,
            Layout::X86_64 => Protocol::X86_64,
        }
    }
}

/// `shutdown`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Shutdown {
    /// The domain's number
    #[arg(short, long, value_name = "DOMAIN")]
    pub pid: Option<u32>,
    /// Give up waiting after so many seconds; it may still be done
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// `trace`.
#[derive(Args, Clone, Debug)]
pub struct Trace {
    /// The domain's number
    #[arg(short, long, value_name = "DOMAIN")]
    pub pid: Option<u32>,
    /// Only this VBD
    #[arg(short, long)]
    pub minor: Option<u16>,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1")]
    pub interval: NonZeroU64,
    /// End after so many looks
    #[arg(short = 'n', long, value_name = "LOOKS")]
    pub count: Option<u64>,
    /// The channel on which failures are told
    #[arg(long, value_name = "PATH", default_value = EVENTS)]
    pub events: String,
}

/// `xenio`.
#[derive(Args, Clone, Debug)]
pub struct Xenio {
    /// The directory of the disks to connect
    #[arg(long, value_name = "PATH", default_value = "/local/domain/0/backend/vbd3")]
    pub root: String,
    /// Do not offer guests to flush
    #[arg(long)]
    pub no_flush: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, ErrorKind> {
        let words = std::iter::once("tap-ctl").chain(line.split_whitespace());
        Arguments::try_parse_from(words).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_holds() {
        Arguments::command().debug_assert();
    }

    /// Lines that scripts and storage managers write for blktap's tap-ctl.
    #[test]
    fn lines_of_blktap() {
        for line in [
            "list",
            "list -p 5",
            "list -m 3",
            "list -t vhd -f /dev/VG/LV",
            "allocate",
            "free -m 3",
            "spawn",
            "attach -p 5 -m 3",
            "detach -p 5 -m 3",
            "open -p 5 -m 3 -a aio:/dev/xvda",
            "open -p 5 -m 3 -a vhd:/x -R -D -r -e 7 -2 aio:/y -s -t 40 -C /log -E",
            "create -a vhd:/x",
            "create -a vhd:/x -R -d name -c slice",
            "close -p 5 -m 3",
            "close -p 5 -m 3 -f -t 120",
            "destroy -p 5 -m 3 -t 10",
            "pause -p 5 -m 3",
            "pause -p 5 -m 3 -t 30",
            "unpause -p 5 -m 3",
            "unpause -p 5 -m 3 -a vhd:/x -2 null -c /log",
            "stats -p 5 -m 3",
            "--debug stats -p 5 -m 3",
            "stats -p 5 -m 3 --debug",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
        let Ok(Arguments { command: Command::Pause(hold), .. }) = parse("pause -p 5 -m 3 -t 30") else { panic!() };
        assert_eq!((hold.which.pid, hold.which.minor, hold.limit()), (Some(5), 3, Some(Duration::from_secs(30))));
    }

    #[test]
    fn wrong_lines() {
        for (line, kind) in [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("nonsense", ErrorKind::InvalidSubcommand),
            ("attach -p 5", ErrorKind::MissingRequiredArgument),
            ("attach -p 5 -m 65536", ErrorKind::ValueValidation),
            ("attach -m -1", ErrorKind::UnknownArgument),
            ("open -m 1", ErrorKind::MissingRequiredArgument),
            ("list --socket /x --domain 5", ErrorKind::ArgumentConflict),
            ("trace -i 0", ErrorKind::ValueValidation),
        ] {
            assert_eq!(parse(line).err(), Some(kind), "{line}");
        }
    }

    #[test]
    fn the_dialect_is_the_channels() {
        for (line, dialect) in [
            ("list", Dialect::Blktap),
            ("list --channel data/tapdisk-rfc", Dialect::Rfc),
            ("list --channel data/tapdisk-rfc --dialect blktap", Dialect::Blktap),
            ("list --dialect rfc", Dialect::Rfc),
            ("list --socket /tmp/x-rfc", Dialect::Blktap),
        ] {
            assert_eq!(parse(line).unwrap().dialect(), dialect, "{line}");
        }
    }
}
