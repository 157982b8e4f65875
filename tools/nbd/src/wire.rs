//! Numbers of the NBD protocol, by its specification (`doc/proto.md` of NetworkBlockDevice/nbd). All of the wire is big-endian.

use drivers::disk::{Error, Info};

/// What a server says first.
pub const MAGIC: &[u8; 8] = b"NBDMAGIC";
/// Then: there are options. Each option of a client begins with it too.
pub const OPTIONS_MAGIC: &[u8; 8] = b"IHAVEOPT";
/// Before each answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each answer.
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flag of both sides: options have answers.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of both sides: no padding after [`OPT_EXPORT_NAME`].
pub const NO_ZEROES: u16 = 2;

/// Choose a disk, without an answer that could say no.
pub const OPT_EXPORT_NAME: u32 = 1;
/// The client goes.
pub const OPT_ABORT: u32 = 2;
/// Tell of a disk.
pub const OPT_INFO: u32 = 6;
/// Tell of it and begin.
pub const OPT_GO: u32 = 7;

/// The option is done.
pub const REP_ACK: u32 = 1;
/// Something about the disk.
pub const REP_INFO: u32 = 3;
/// There is no such option.
pub const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
/// The option makes no sense.
pub const REP_ERR_INVALID: u32 = 1 << 31 | 3;
/// About the disk: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// About the disk: the least, the best and the largest request.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Requests.
pub const CMD_READ: u16 = 0;
/// Followed by the bytes.
pub const CMD_WRITE: u16 = 1;
/// The client goes.
pub const CMD_DISC: u16 = 2;
/// What was answered is durable.
pub const CMD_FLUSH: u16 = 3;
/// Not needed any more.
pub const CMD_TRIM: u16 = 4;
/// Zeroes from now on.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Flag of a request: durable when answered.
pub const CMD_FLAG_FUA: u16 = 1;

/// Most bytes of one request.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// EINVAL, as the protocol has it.
pub const EINVAL: u32 = 22;

/// The transmission flags of a disk.
pub fn flags(info: &Info) -> u16 {
    const HAS_FLAGS: u16 = 1 << 0;
    const READ_ONLY: u16 = 1 << 1;
    const SEND_FLUSH: u16 = 1 << 2;
    const SEND_FUA: u16 = 1 << 3;
    const SEND_TRIM: u16 = 1 << 5;
    const SEND_WRITE_ZEROES: u16 = 1 << 6;
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA;
    if info.read_only {
        flags |= READ_ONLY;
    } else {
        flags |= SEND_WRITE_ZEROES;
    }
    if info.discard.is_some() {
        flags |= SEND_TRIM;
    }
    flags
}

/// The number for what a disk says.
pub fn number(error: Error) -> u32 {
    match error {
        Error::Medium | Error::Corrupt(_) => 5,
        Error::ReadOnly => 1,
        Error::OutOfRange => EINVAL,
        Error::NoSpace => 28,
        Error::Unsupported => 95,
        Error::Gone => 108,
    }
}
