//! The fixed newstyle handshake: what is said until a client has its disk. There is one disk, under any name.

use std::io::{Read, Write};

use anyhow::{Result, bail, ensure};
use drivers::disk::{Info, SECTOR_BYTES};

use crate::wire;

/// An option may have a name of 4 KiB and some numbers.
const OPTION_BYTES_MAX: u32 = 8 << 10;

/// Comes to terms with a client; false if it goes again.
pub fn shake(info: &Info, client: &mut (impl Read + Write)) -> Result<bool> {
    let ours = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
    client.write_all(&[&wire::MAGIC[..], wire::OPTIONS_MAGIC, &ours.to_be_bytes()].concat())?;
    let theirs = u32::from_be_bytes(bytes(client)?);
    ensure!(theirs & !u32::from(ours) == 0, "unknown flags: {theirs:#x}");
    loop {
        let magic = bytes(client)?;
        ensure!(&magic == wire::OPTIONS_MAGIC, "not an option: {}", magic.escape_ascii());
        let (option, length) = (u32::from_be_bytes(bytes(client)?), u32::from_be_bytes(bytes(client)?));
        ensure!(length <= OPTION_BYTES_MAX, "option {option} of {length} bytes");
        let mut data = vec![0; length as usize];
        client.read_exact(&mut data)?;
        match option {
            wire::OPT_EXPORT_NAME => {
                let padding: &[u8] = if theirs & u32::from(wire::NO_ZEROES) == 0 { &[0; 124] } else { &[] };
                client.write_all(&[&export(info), padding].concat())?;
                return Ok(true);
            }
            wire::OPT_ABORT => {
                reply(client, option, wire::REP_ACK, &[])?;
                return Ok(false);
            }
            wire::OPT_INFO | wire::OPT_GO if !is_request_of_disk(&data) => {
                reply(client, option, wire::REP_ERR_INVALID, &[])?;
            }
            wire::OPT_INFO | wire::OPT_GO => {
                let export = [&wire::INFO_EXPORT.to_be_bytes()[..], &export(info)].concat();
                reply(client, option, wire::REP_INFO, &export)?;
                let sizes = [SECTOR_BYTES as u32, info.physical_bytes.max(4096), wire::REQUEST_BYTES_MAX];
                let sizes = sizes.map(u32::to_be_bytes).concat();
                let sizes = [&wire::INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat();
                reply(client, option, wire::REP_INFO, &sizes)?;
                reply(client, option, wire::REP_ACK, &[])?;
                if option == wire::OPT_GO {
                    return Ok(true);
                }
            }
            // Structured replies, TLS and what may come yet.
            _ => reply(client, option, wire::REP_ERR_UNSUP, &[])?,
        }
    }
}

/// A name with its length before it, then so many numbers of what the client likes to know.
fn is_request_of_disk(data: &[u8]) -> bool {
    let Some((length, rest)) = data.split_first_chunk() else { return false };
    let Some((_, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize) else { return false };
    let Some((count, wishes)) = rest.split_first_chunk() else { return false };
    wishes.len() == usize::from(u16::from_be_bytes(*count)) * 2
}

/// Size and flags.
fn export(info: &Info) -> Vec<u8> {
    let size = info.sectors * SECTOR_BYTES as u64;
    [&size.to_be_bytes()[..], &wire::flags(info).to_be_bytes()].concat()
}

fn reply(client: &mut impl Write, option: u32, reply: u32, data: &[u8]) -> Result<()> {
    let Ok(length) = u32::try_from(data.len()) else { bail!("an answer of {} bytes", data.len()) };
    let head = [option, reply, length].map(u32::to_be_bytes).concat();
    client.write_all(&[&wire::OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, data].concat())?;
    Ok(())
}

fn bytes<const N: usize>(from: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    use drivers::disk::Discard;

    const INFO: Info = Info {
        sectors: 3,
        physical_bytes: 512,
        read_only: false,
        flush: true,
        discard: Some(Discard { granularity_bytes: 512, alignment_bytes: 0 }),
        grows: false,
    };

    /// Says what is in it and hears everything.
    struct Client(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Client {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(into)
        }
    }

    impl Write for Client {
        fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
            self.1.write(from)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn option(option: u32, data: &[u8]) -> Vec<u8> {
        [&b"IHAVEOPT"[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    }

    fn told(flags: u32, words: &[Vec<u8>]) -> (Option<bool>, Vec<u8>) {
        let mut client = Client(Cursor::new([&flags.to_be_bytes()[..], &words.concat()].concat()), Vec::new());
        let end = shake(&INFO, &mut client).ok();
        assert!(client.1.starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
        (end, client.1.split_off(18))
    }

    #[test]
    fn the_old_way_to_a_disk_has_padding_if_it_is_wanted() {
        let (end, answer) = told(1, &[option(1, b"any")]);
        assert_eq!((end, answer.len()), (Some(true), 8 + 2 + 124));
        // 1536 bytes; flush, FUA, trim and zeroes.
        assert_eq!(answer[..10], [0, 0, 0, 0, 0, 0, 6, 0, 0, 0b110_1101]);
        assert_eq!(told(3, &[option(1, b"any")]).1.len(), 10);
    }

    #[test]
    fn what_is_not_known_is_refused_and_the_conversation_goes_on() {
        let words = [option(8, b""), option(6, b"\0\0\0\x01x\0\0"), option(7, b"\0\0\0\0\0\x01\0\x03")];
        let (end, answer) = told(3, &words);
        assert_eq!(end, Some(true));
        let kinds: Vec<u32> = std::iter::successors(Some(&answer[..]), |rest| {
            let length = u32::from_be_bytes(rest[16..20].try_into().unwrap());
            Some(&rest[20 + length as usize..]).filter(|rest| !rest.is_empty())
        })
        .map(|reply| u32::from_be_bytes(reply[12..16].try_into().unwrap()))
        .collect();
        assert_eq!(kinds, [wire::REP_ERR_UNSUP, 3, 3, 1, 3, 3, 1]);
    }

    #[test]
    fn nonsense_is_refused_or_ends_it() {
        for data in [&b""[..], b"\0\0\0\x02x", b"\0\0\0\0\0\x01", b"\xff\xff\xff\xff\0\0", b"\0\0\0\0\0\0\0"] {
            let (end, answer) = told(3, &[option(7, data), option(2, b"")]);
            assert_eq!(end, Some(false), "{data:?}");
            assert_eq!(answer[12..16], wire::REP_ERR_INVALID.to_be_bytes(), "{data:?}");
        }
        assert_eq!(told(4, &[]).0, None);
        assert_eq!(told(3, &[b"IHAVEN'T".to_vec()]).0, None);
        assert_eq!(told(3, &[[&b"IHAVEOPT\0\0\0\x07"[..], &[0xff; 4]].concat()]).0, None);
    }
}
