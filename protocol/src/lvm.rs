//! LVM2's physical volumes and the text of their metadata, read only: bytes in, what they mean or what is wrong out.
//!
//! The caller reads sectors and gives the text in pieces of any length. Numbers are little-endian. The facts are those of
//! lvm2's documentation of its format ("Volume Group metadata", `vgcfgrestore(8)`, `pvck(8)`) and of what its own
//! programs write and print.
//!
//! # Layout of a physical volume
//! The [`Label`] is in one of the first four sectors. It names up to two metadata areas. Each begins with a [`Header`] of
//! one sector, and the rest is a ring: every change of the group writes its whole [`Text`] behind the one before, and
//! then points the header at it. All volumes of a group have the same text, but for those that were away.
//!
//! # Layout
//! - [`label`](Label): who this volume is, and where its areas are
//! - [`area`](Header): where in the ring the text is
//! - [`text`](Reader): the text as a stream of sections and values
//! - [`name`](Name): `/dev/VG/LV` and `/dev/mapper/VG-LV`

use crate::bytes::bytes_at;
use crate::bytes::little::{u32_at, u64_at};
use core::fmt;

use crc32fast::Hasher;

mod area;
mod label;
mod name;
mod text;

pub use area::{Header, TEXT_BYTES_MAX, Text};
pub use label::{AREAS_MAX, LABEL_SECTORS, Label, Span};
pub use name::{Name, is_name};
pub use text::{DEPTH_MAX, Item, KEY_BYTES_MAX, Reader, VALUE_BYTES_MAX, Value};

/// Bytes of a sector, the unit of positions here unless they are said to be bytes.
pub const SECTOR_BYTES: usize = 512;
/// The register that lvm2's CRC-32 begins with; it is not inverted in the end.
const SEED: u32 = 0xf597_a6cf;

/// Which structure is wrong, and which field of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A physical volume's label.
    Label(Field),
    /// A metadata area's header.
    Area(Field),
    /// The text, and in which line.
    Text(u32, Wrong),
}

/// What is wrong with a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The structure is not here.
    Magic,
    /// The checksum is wrong.
    Checksum,
    /// It says that it is elsewhere.
    Misplaced,
    /// A version that we do not know.
    Version(u32),
    /// An identifier of other characters than lvm2's.
    Id,
    /// A position that is no multiple of a sector, or nowhere.
    Offset,
    /// A list that does not end within the label.
    List,
    /// More metadata areas than lvm2 makes.
    Areas,
    /// A length of nothing, or of more than there is room for, or than we take.
    Length(u64),
}

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A character that has no place there.
    Character(u8),
    /// A name longer than [`KEY_BYTES_MAX`].
    Long,
    /// More sections within each other than [`DEPTH_MAX`].
    Deep,
    /// It ends in the middle.
    End,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bad::Label(field) => write!(f, "LVM label: {field}"),
            Bad::Area(field) => write!(f, "LVM metadata area: {field}"),
            Bad::Text(line, wrong) => write!(f, "LVM metadata, line {line}: {wrong}"),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Magic => f.write_str("no such structure here (magic)"),
            Field::Checksum => f.write_str("wrong checksum"),
            Field::Misplaced => f.write_str("says that it is elsewhere"),
            Field::Version(version) => write!(f, "version {version}"),
            Field::Id => f.write_str("uuid of other characters than a uuid's"),
            Field::Offset => f.write_str("offset out of place"),
            Field::List => f.write_str("list of areas without an end"),
            Field::Areas => write!(f, "more than {AREAS_MAX} metadata areas"),
            Field::Length(bytes) => write!(f, "length of {bytes} bytes"),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Character(byte) => write!(f, "'{}' out of place", byte.escape_ascii()),
            Wrong::Long => write!(f, "a name of more than {KEY_BYTES_MAX} bytes"),
            Wrong::Deep => write!(f, "more than {DEPTH_MAX} sections within each other"),
            Wrong::End => f.write_str("ends in the middle"),
        }
    }
}

impl core::error::Error for Bad {}

/// A physical volume's or a group's own number: 32 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id([u8; 32]);

impl Id {
    /// From its 32 characters, as a label has them.
    pub fn of(bytes: &[u8; 32]) -> Option<Id> {
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'!' | b'#');
        bytes.iter().all(known).then_some(Id(*bytes))
    }

    /// From the text's form, in groups of 6-4-4-4-4-4-6.
    pub fn parse(text: &str) -> Option<Id> {
        let mut bytes = [0; 32];
        let mut places = bytes.iter_mut();
        for (at, byte) in text.bytes().enumerate() {
            match Self::hyphen_at(at) {
                true if byte == b'-' => {}
                true => return None,
                false => *places.next()? = byte,
            }
        }
        if places.next().is_some() { None } else { Id::of(&bytes) }
    }

    fn hyphen_at(at: usize) -> bool {
        matches!(at, 6 | 11 | 16 | 21 | 26 | 31)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        let mut at = 0;
        for byte in self.0 {
            if Self::hyphen_at(at) {
                f.write_char('-')?;
                at += 1;
            }
            f.write_char(byte.into())?;
            at += 1;
        }
        Ok(())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The checksum of all structures and of the text, fed in pieces.
#[derive(Clone)]
pub struct Sum(Hasher);

impl Sum {
    /// Of nothing yet.
    #[expect(clippy::new_without_default, reason = "a sum begins, it has no usual value")]
    pub fn new() -> Sum {
        Sum(Hasher::new_with_initial(!SEED))
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of all that was fed.
    pub fn finish(self) -> u32 {
        !self.0.finalize()
    }
}

fn sum(bytes: &[u8]) -> u32 {
    let mut sum = Sum::new();
    sum.update(bytes);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn ids_have_one_spelling() {
        let text = "A1dfNm-ZKgG-DiP0-1zDE-Tx9d-ZtON-LmAoal";
        let id = Id::parse(text).unwrap();
        assert_eq!(Id::of(b"A1dfNmZKgGDiP01zDETx9dZtONLmAoal"), Some(id));
        assert_eq!(id.to_string(), text);
        for wrong in [
            "",
            "A1dfNm-ZKgG-DiP0-1zDE-Tx9d-ZtON-LmAoa",
            "A1dfNm-ZKgG-DiP0-1zDE-Tx9d-ZtON-LmAoal1",
            "A1dfNmZKgGDiP01zDETx9dZtONLmAoal",
            "A1dfNm-ZKgG-DiP0-1zDE-Tx9d-ZtON-LmAo l",
            "A1dfN-mZKgG-DiP0-1zDE-Tx9d-ZtON-LmAoal",
        ] {
            assert_eq!(Id::parse(wrong), None, "{wrong}");
        }
    }
}
