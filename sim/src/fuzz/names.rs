//! Texts of a toolstack and of a guest: names of disks, numbers, states, paths.

use drivers::target::{Quoted, Source, Target};
use protocol::blkif::Layout;
use protocol::lvm::is_name;
use protocol::xenbus::State;
use protocol::{number, xenstore};

/// The longest text an error may come to: it goes into xenstore and onto the console.
const ERROR_BYTES_MAX: usize = 256;

/// One text.
pub fn names(bytes: &[u8]) {
    numbers(bytes);
    store(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert_eq!(Layout::of_protocol(Some(text)).is_some(), matches!(text, "x86_32-abi" | "x86_64-abi"));
    let quoted = Quoted(text).to_string();
    assert!(quoted.len() <= 67 && quoted.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{quoted:?}");
    match Target::parse(text) {
        Ok(target @ (Target::Raw(_) | Target::Vhd(_))) => {
            let (Target::Raw(source) | Target::Vhd(source)) = &target else { unreachable!() };
            // What is shown names the same disk.
            let kind = if text.starts_with("vhd:") { "vhd" } else { "aio" };
            assert_eq!(Target::parse(&format!("{kind}:{source}")).as_ref(), Ok(&target));
            match source {
                Source::Lower(lower) => {
                    assert!(text.ends_with(&lower.to_string()), "{text:?} shows as {lower}");
                    assert!(lower.partition.is_none_or(|number| (1..=128).contains(&number)));
                }
                Source::Logical(name) => {
                    assert!(text.ends_with(&source.to_string()) || text.contains("/dev/mapper/"), "{text:?}: {source}");
                    assert!(is_name(&name.group) && is_name(&name.volume), "{name:?}");
                }
            }
        }
        Ok(Target::Ram { pages }) => {
            assert!((1..=1 << 28).contains(&pages), "{text:?} is {pages} pages");
            assert_eq!(Target::parse(&format!("ram:{}", pages * 4096)), Ok(Target::Ram { pages }));
        }
        Err(error) => {
            assert!(error.errno.number() > 0 && !error.text.is_empty());
            assert!(error.text.len() <= ERROR_BYTES_MAX, "{} bytes of error", error.text.len());
            assert!(error.text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{error:?}");
        }
    }
}

fn numbers(bytes: &[u8]) {
    let digits = (1..=20).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit);
    let wide = digits.then(|| bytes.iter().fold(0u128, |value, byte| value * 10 + u128::from(byte - b'0')));
    assert_eq!(number::u64(bytes).map(u128::from), wide.filter(|value| *value <= u64::MAX.into()));
    assert_eq!(number::u32(bytes).map(u128::from), wide.filter(|value| *value <= u32::MAX.into()));
    assert_eq!(number::u16(bytes).map(u128::from), wide.filter(|value| *value <= u16::MAX.into()));
    if let Some(value) = number::u64(bytes) {
        assert_eq!(number::u64(number::text(value)), Some(value));
    }
    assert_eq!(number::flag(bytes).map(u128::from), wide.filter(|value| bytes.len() == 1 && *value <= 1));
    assert_eq!(State::parse(bytes) as u128, wide.filter(|value| bytes.len() == 1 && *value <= 8).unwrap_or(0));
}

fn store(bytes: &[u8]) {
    for name in xenstore::names(bytes) {
        assert!(xenstore::valid_path(name) && !name.contains('/'));
    }
    if let Ok(event) = xenstore::Event::parse(bytes) {
        let whole = [event.path.as_bytes(), event.token.as_bytes()].join(&0);
        assert!(bytes.starts_with(&whole) && !event.path.is_empty());
    }
    let _any = xenstore::Reason::of(bytes);
    if let Some(header) = bytes.first_chunk()
        && let Ok(header) = xenstore::Header::decode(header)
    {
        assert!(header.bytes as usize <= xenstore::PAYLOAD_BYTES && bytes.starts_with(&header.encode()));
    }
}
