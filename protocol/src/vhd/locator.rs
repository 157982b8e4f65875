//! Parent locators: where a differencing disk says what its parent is called, and the names themselves.
//!
//! A name comes from the image, so it is only text: who opens a parent takes its last component ([`file_name`]) and
//! looks for it where the child is.

use core::fmt::Write;
use core::str;

use heapless::{String, Vec};

use super::{Bad, Field, REACH_SECTORS, SECTOR_BYTES, put, sector, u32_at, u64_at};

/// Bytes of a name in an image, at most: blktap takes half as many, Windows' own paths have 520.
pub const LOCATOR_BYTES_MAX: usize = 2048;
/// Bytes of a name as text, at most.
pub const TEXT_BYTES_MAX: usize = 1024;
const BYTES: usize = 24;
const SCHEME: &str = "file://";

/// Which system's way to say a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Code {
    /// An empty place.
    #[default]
    None,
    /// `W2ru`: relative to the child, UTF-16LE, backslashes.
    W2ru,
    /// `W2ku`: absolute, UTF-16LE, backslashes. blktap writes a relative name here too.
    W2ku,
    /// `MacX`: a file URL, UTF-8.
    Macx,
    /// Something else, which holds no name that we read: `Wi2r` and `Wi2k` are deprecated, `Mac ` is an alias' bytes.
    Other(u32),
}

impl Code {
    /// The code of its four bytes.
    pub fn parse(code: u32) -> Code {
        match &code.to_be_bytes() {
            b"\0\0\0\0" => Code::None,
            b"W2ru" => Code::W2ru,
            b"W2ku" => Code::W2ku,
            b"MacX" => Code::Macx,
            _ => Code::Other(code),
        }
    }

    /// Its four bytes.
    pub fn encode(self) -> u32 {
        match self {
            Code::None => 0,
            Code::W2ru => u32::from_be_bytes(*b"W2ru"),
            Code::W2ku => u32::from_be_bytes(*b"W2ku"),
            Code::Macx => u32::from_be_bytes(*b"MacX"),
            Code::Other(code) => code,
        }
    }
}

/// One of a header's eight locators, as it was found: nothing is checked before [`Locator::place`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locator {
    /// How the name is said.
    pub code: Code,
    /// Room for the name: sectors if it is below 512, as the specification wants it, else bytes, as Windows and blktap
    /// write it.
    pub space: u32,
    /// Bytes of the name.
    pub length: u32,
    /// The byte of the image where the name begins.
    pub offset: u64,
}

impl Locator {
    pub(super) fn parse(bytes: &[u8; BYTES]) -> Locator {
        let code = Code::parse(u32_at(bytes, 0));
        Locator { code, space: u32_at(bytes, 4), length: u32_at(bytes, 8), offset: u64_at(bytes, 16) }
    }

    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        put(&mut bytes, 0, &self.code.encode().to_be_bytes());
        put(&mut bytes, 4, &self.space.to_be_bytes());
        put(&mut bytes, 8, &self.length.to_be_bytes());
        put(&mut bytes, 16, &self.offset.to_be_bytes());
        bytes
    }

    /// A locator as blktap writes it: a name of `length` bytes (1 to [`LOCATOR_BYTES_MAX`]) at sector `at`.
    pub fn new(code: Code, length: u32, at: u64) -> Locator {
        let sector_bytes = SECTOR_BYTES as u32;
        Locator { code, space: length.next_multiple_of(sector_bytes), length, offset: at * u64::from(sector_bytes) }
    }

    /// The first sector of the name and its bytes, 1 to [`LOCATOR_BYTES_MAX`].
    ///
    /// # Errors
    /// [`Bad::Locator`], with the field.
    pub fn place(&self) -> Result<(u64, usize), Bad> {
        let sector_bytes = SECTOR_BYTES as u64;
        let room = match u64::from(self.space) {
            sectors if sectors < sector_bytes => sectors * sector_bytes,
            bytes => bytes,
        };
        let length = usize::try_from(self.length).ok().filter(|length| (1..=LOCATOR_BYTES_MAX).contains(length));
        let length = length.filter(|length| *length as u64 <= room).ok_or(Bad::Locator(Field::Length(self.length)))?;
        let at = sector(self.offset).filter(|at| *at > 0 && at + length.div_ceil(SECTOR_BYTES) as u64 <= REACH_SECTORS);
        Ok((at.ok_or(Bad::Locator(Field::Offset))?, length))
    }
}

/// Why a name is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A locator without a name.
    Code,
    /// Nothing.
    Empty,
    /// More than [`TEXT_BYTES_MAX`] bytes of text, or than there is room for.
    TooLong,
    /// No UTF-16, no UTF-8, or a percent sign without two digits.
    Encoding,
    /// Control characters; NUL too, but for those at the end.
    Control,
    /// A URL of another scheme, or of another machine.
    Scheme,
    /// A component `..`, or a name that ends with `.` or a slash.
    Component,
}

/// Reads a name: `bytes` are those at a locator's place. What comes is a path with slashes; Windows' `C:` stays.
///
/// # Errors
/// What is wrong with the name; `into` is empty then.
pub fn locator_text(code: Code, bytes: &[u8], into: &mut String<TEXT_BYTES_MAX>) -> Result<(), Reason> {
    into.clear();
    let read = match code {
        Code::W2ru | Code::W2ku => utf16(bytes, u16::from_le_bytes, true, into),
        Code::Macx => url(bytes, into),
        Code::None | Code::Other(_) => Err(Reason::Code),
    };
    read.and_then(|()| check(into)).inspect_err(|_| into.clear())
}

/// The bytes of `path` (with slashes, relative to the child) for a locator of ours.
///
/// # Errors
/// What is wrong with the name.
pub fn locator_bytes(code: Code, path: &str) -> Result<Vec<u8, LOCATOR_BYTES_MAX>, Reason> {
    check(path)?;
    let mut bytes = Vec::new();
    match code {
        Code::W2ru | Code::W2ku => to_utf16(path, &mut bytes)?,
        Code::Macx => to_url(path, &mut bytes)?,
        Code::None | Code::Other(_) => return Err(Reason::Code),
    }
    Ok(bytes)
}

/// The last component of a path with slashes or backslashes, if it is a name that a file can have.
pub fn file_name(path: &str) -> Option<&str> {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    // A drive's letter and no slash: "C:base.vhd".
    let name = match name.as_bytes() {
        [letter, b':', ..] if letter.is_ascii_alphabetic() => &name[2..],
        _ => name,
    };
    Some(name).filter(|name| !matches!(*name, "" | "." | ".."))
}

/// Reads a header's name of the parent, UTF-16BE.
pub(super) fn unicode_name(bytes: &[u8], into: &mut String<TEXT_BYTES_MAX>) -> Result<(), Reason> {
    into.clear();
    utf16(bytes, u16::from_be_bytes, false, into).and_then(|()| check(into)).inspect_err(|_| into.clear())
}

/// Checks a whole path.
fn check(path: &str) -> Result<(), Reason> {
    if path.is_empty() {
        return Err(Reason::Empty);
    }
    if path.chars().any(char::is_control) {
        return Err(Reason::Control);
    }
    if path.split(['/', '\\']).any(|part| part == "..") || file_name(path).is_none() {
        return Err(Reason::Component);
    }
    Ok(())
}

fn utf16(
    bytes: &[u8],
    unit: fn([u8; 2]) -> u16,
    backslashes: bool,
    into: &mut String<TEXT_BYTES_MAX>,
) -> Result<(), Reason> {
    let (units, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(Reason::Encoding);
    }
    let end = units.iter().rposition(|unit| *unit != [0; 2]).map_or(0, |last| last + 1);
    for letter in char::decode_utf16(units[..end].iter().map(|bytes| unit(*bytes))) {
        let letter = letter.map_err(|_| Reason::Encoding)?;
        let letter = if backslashes && letter == '\\' { '/' } else { letter };
        into.push(letter).map_err(|_| Reason::TooLong)?;
    }
    Ok(())
}

/// `file://./name` as blktap writes it, `file:///path` and `file://localhost/path` as others do.
fn url(bytes: &[u8], into: &mut String<TEXT_BYTES_MAX>) -> Result<(), Reason> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = str::from_utf8(&bytes[..end]).map_err(|_| Reason::Encoding)?;
    if text.is_empty() {
        return Err(Reason::Empty);
    }
    let path = text.strip_prefix(SCHEME).ok_or(Reason::Scheme)?;
    let path = path.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(path);
    // What is neither a path nor relative is another machine's.
    if !path.is_empty() && !path.starts_with('/') && !path.starts_with("./") && !path.starts_with("../") {
        return Err(Reason::Scheme);
    }
    let mut plain = Vec::<u8, TEXT_BYTES_MAX>::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { escaped(&mut bytes).ok_or(Reason::Encoding)? } else { byte };
        plain.push(byte).map_err(|_| Reason::TooLong)?;
    }
    let plain = str::from_utf8(&plain).map_err(|_| Reason::Encoding)?;
    into.push_str(plain).map_err(|_| Reason::TooLong)
}

/// The byte of the two digits after a percent sign.
fn escaped(bytes: &mut str::Bytes<'_>) -> Option<u8> {
    let mut digit = || char::from(bytes.next()?).to_digit(16);
    // Two digits below 16.
    Some((digit()? * 16 + digit()?) as u8)
}

/// As Windows and blktap want it: a relative name begins with `.\`.
fn to_utf16(path: &str, into: &mut Vec<u8, LOCATOR_BYTES_MAX>) -> Result<(), Reason> {
    let prefix = if path.starts_with(['/', '.']) { "" } else { ".\\" };
    for unit in prefix.encode_utf16().chain(path.encode_utf16()) {
        let unit = if unit == u16::from(b'/') { u16::from(b'\\') } else { unit };
        into.extend_from_slice(&unit.to_le_bytes()).map_err(|_| Reason::TooLong)?;
    }
    Ok(())
}

/// As blktap writes it, which escapes nothing: only what would be read as something else is escaped.
fn to_url(path: &str, into: &mut Vec<u8, LOCATOR_BYTES_MAX>) -> Result<(), Reason> {
    let mut text = String::<LOCATOR_BYTES_MAX>::new();
    let prefix = if path.starts_with('/') || path.starts_with("./") { "" } else { "./" };
    let written = write!(text, "{SCHEME}{prefix}").is_ok()
        && path.chars().all(|letter| match letter {
            '%' | '?' | '#' => write!(text, "%{:02X}", u32::from(letter)).is_ok(),
            _ => text.push(letter).is_ok(),
        });
    if !written {
        return Err(Reason::TooLong);
    }
    into.extend_from_slice(text.as_bytes()).map_err(|_| Reason::TooLong)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec as Bytes;

    use super::*;

    fn text(code: Code, bytes: &[u8]) -> Result<std::string::String, Reason> {
        let mut into = String::try_from("before").unwrap();
        let read = locator_text(code, bytes, &mut into);
        assert!(read.is_ok() || into.is_empty());
        read.map(|()| into.as_str().into())
    }

    fn wide(text: &str) -> Bytes<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn windows() {
        let read = |name: &str| text(Code::W2ru, &wide(name));
        assert_eq!(read(".\\base.vhd").as_deref(), Ok("./base.vhd"));
        assert_eq!(read("C:\\disks\\b\u{e4}se \u{1d11e}.vhd\0\0").as_deref(), Ok("C:/disks/b\u{e4}se \u{1d11e}.vhd"));
        assert_eq!(text(Code::W2ku, &wide("base")).as_deref(), Ok("base"));
        assert_eq!(text(Code::W2ku, b"b\0\0\xd8"), Err(Reason::Encoding));
        assert_eq!(text(Code::W2ku, b"b\0c"), Err(Reason::Encoding));
    }

    #[test]
    fn urls() {
        let read = |name: &str| text(Code::Macx, name.as_bytes());
        assert_eq!(read("file://./VHD-5f3c").as_deref(), Ok("./VHD-5f3c"));
        assert_eq!(read("file:///dev/VG%20x/l%C3%a4\0\0").as_deref(), Ok("/dev/VG x/l\u{e4}"));
        assert_eq!(read("file://localhost/a").as_deref(), Ok("/a"));
        for other in ["http://./a", "file:/a", "file://elsewhere/a", "file://localhost", "/a", "FILE://./a"] {
            assert_eq!(read(other), Err(Reason::Scheme), "{other}");
        }
        for wrong in ["file://./%", "file://./%4", "file://./%4g", "file://./%ff", "file://./%+1"] {
            assert_eq!(read(wrong), Err(Reason::Encoding), "{wrong}");
        }
        assert_eq!(text(Code::Macx, b"file://./\xff"), Err(Reason::Encoding));
    }

    #[test]
    fn refused_by_reason() {
        for (name, reason) in [
            ("", Reason::Empty),
            ("\0\0", Reason::Empty),
            ("a\0b", Reason::Control),
            ("a\nb", Reason::Control),
            ("a\u{85}", Reason::Control),
            ("..", Reason::Component),
            ("..\\a", Reason::Component),
            ("a\\..\\b", Reason::Component),
            ("a/", Reason::Component),
            (".", Reason::Component),
            (".\\", Reason::Component),
            ("C:", Reason::Component),
        ] {
            assert_eq!(text(Code::W2ru, &wide(name)), Err(reason), "{name:?}");
        }
        for (name, reason) in [
            ("", Reason::Empty),
            ("file://", Reason::Empty),
            ("file://./%00", Reason::Control),
            ("file://./a%2f%2e%2e/b", Reason::Component),
            ("file://../a", Reason::Component),
        ] {
            assert_eq!(text(Code::Macx, name.as_bytes()), Err(reason), "{name:?}");
        }
        for code in [Code::None, Code::Other(u32::from_be_bytes(*b"Wi2k"))] {
            assert_eq!(text(code, b"a"), Err(Reason::Code));
            assert_eq!(locator_bytes(code, "a"), Err(Reason::Code));
        }
        let long = "l".repeat(TEXT_BYTES_MAX);
        assert_eq!(text(Code::W2ku, &wide(&long)).map(|text| text.len()), Ok(TEXT_BYTES_MAX));
        assert_eq!(text(Code::W2ku, &wide(&std::format!("{long}l"))), Err(Reason::TooLong));
        assert_eq!(text(Code::Macx, std::format!("file:///{long}").as_bytes()), Err(Reason::TooLong));
    }

    #[test]
    fn as_blktap_writes() {
        // libvhd turns the path into one relative to the child, and writes that in all three.
        assert_eq!(locator_bytes(Code::W2ru, "./base").unwrap(), wide(".\\base")[..]);
        assert_eq!(locator_bytes(Code::W2ku, "base").unwrap(), wide(".\\base")[..]);
        assert_eq!(locator_bytes(Code::Macx, "base").unwrap(), b"file://./base"[..]);
        assert_eq!(locator_bytes(Code::Macx, "/dev/VG/LV").unwrap(), b"file:///dev/VG/LV"[..]);
    }

    #[test]
    fn there_and_back() {
        let long = std::format!("./{}", "\u{e4}".repeat(500));
        for path in ["./base.vhd", "/dev/VG_XenStorage-1/VHD-2", "./a b%20?#[].vhd", "./\u{1d11e}", &long] {
            for code in [Code::W2ru, Code::W2ku, Code::Macx] {
                let bytes = locator_bytes(code, path).unwrap();
                assert_eq!(text(code, &bytes).as_deref(), Ok(path));
            }
        }
        for wrong in ["", "a\0", "../a", "a/.."] {
            assert!(locator_bytes(Code::W2ru, wrong).is_err());
        }
        assert_eq!(locator_bytes(Code::W2ru, &"l".repeat(1022)).map(|bytes| bytes.len()), Ok(2048));
        assert_eq!(locator_bytes(Code::W2ru, &"l".repeat(1023)), Err(Reason::TooLong));
        assert_eq!(locator_bytes(Code::Macx, &"%".repeat(2048)), Err(Reason::TooLong));
    }

    #[test]
    fn names() {
        for (path, name) in [
            ("a", Some("a")),
            ("./a", Some("a")),
            ("/b/a.vhd", Some("a.vhd")),
            ("C:\\b\\a", Some("a")),
            ("C:a", Some("a")),
            ("1:a", Some("1:a")),
            ("..a", Some("..a")),
            ("a/", None),
            ("", None),
            ("b/.", None),
            ("b/..", None),
            ("C:", None),
        ] {
            assert_eq!(file_name(path), name, "{path}");
        }
    }

    #[test]
    fn places() {
        let place = |space, length, offset| Locator { code: Code::W2ru, space, length, offset }.place();
        let length = |length| Err(Bad::Locator(Field::Length(length)));
        assert_eq!(place(1, 512, 4096), Ok((8, 512)));
        assert_eq!(place(512, 512, 512), Ok((1, 512)));
        assert_eq!(place(4, 2048, 4096), Ok((8, 2048)));
        assert_eq!(place(2048, 2048, 4096), Ok((8, 2048)));
        assert_eq!(place(1, 513, 4096), length(513));
        assert_eq!(place(512, 513, 4096), length(513));
        assert_eq!(place(0, 1, 4096), length(1));
        assert_eq!(place(1, 0, 4096), length(0));
        assert_eq!(place(u32::MAX, 2049, 4096), length(2049));
        assert_eq!(place(u32::MAX, u32::MAX, 4096), length(u32::MAX));
        for offset in [0, 1, 513, u64::MAX, u64::MAX - 511, 0xffff_fffe * 512] {
            assert_eq!(place(4, 513, offset), Err(Bad::Locator(Field::Offset)));
        }
        assert_eq!(Locator::new(Code::Macx, 13, 8), Locator { code: Code::Macx, space: 512, length: 13, offset: 4096 });
        assert_eq!(Locator::new(Code::Macx, 513, 8).space, 1024);
    }

    #[test]
    fn codes() {
        for code in [0, 0x5769_326b, 0x5769_3272, 0x4d61_6320, 0x4d61_6358, 0x5732_7275, 0x5732_6b75, u32::MAX] {
            assert_eq!(Code::parse(code).encode(), code);
        }
        assert_eq!(Code::parse(0x5732_7275), Code::W2ru);
        assert_eq!(Code::parse(0x5732_6b75), Code::W2ku);
        assert_eq!(Code::parse(0x4d61_6358), Code::Macx);
        assert_eq!(Code::parse(0x4d61_6320), Code::Other(0x4d61_6320));
    }
}
