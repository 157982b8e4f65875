//! Texts that fit their 256 bytes.

use core::fmt;
use core::ops::Deref;

use super::{Fault, Field, Malformed};

/// Bytes of every text field, the NUL at the end among them: `TAPDISK_MESSAGE_STRING_LENGTH` and
/// `TAPDISK_MESSAGE_MAX_PATH_LENGTH`.
pub const TEXT_BYTES: usize = 256;
/// Bytes of text before the NUL.
const FILLED_MAX: usize = TEXT_BYTES - 1;

/// A text that fits a field: UTF-8, at most 255 bytes, no NUL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// No text.
    pub const EMPTY: Text<'static> = Text("");

    /// The text, if it fits as it is.
    pub fn new(text: &'a str) -> Option<Text<'a>> {
        (text.len() <= FILLED_MAX && !text.contains('\0')).then_some(Text(text))
    }

    /// As much of the text as fits, cut before its first NUL and between characters. For words to a person; a name
    /// that does not fit is better refused, see [`Text::new`].
    pub fn cut(text: &'a str) -> Text<'a> {
        let text = text.split('\0').next().unwrap_or_default();
        Text(&text[..text.floor_char_boundary(FILLED_MAX)])
    }

    /// The text in front of the field's first NUL. What is behind it nobody reads.
    pub(super) fn decode(bytes: &'a [u8], field: Field) -> Result<Text<'a>, Malformed> {
        let end = bytes.iter().position(|byte| *byte == 0).ok_or(Malformed::Field(field, Fault::NoNul))?;
        core::str::from_utf8(&bytes[..end]).map(Text).map_err(|_| Malformed::Field(field, Fault::NotUtf8))
    }

    /// The text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Room for the text of an answer. Whatever is written, what fits is kept: the end of a long explanation is lost, not
/// the answer.
#[derive(Clone)]
pub struct Reason {
    bytes: [u8; FILLED_MAX],
    filled: usize,
    /// Something was lost: nothing may come after the gap.
    full: bool,
}

impl Reason {
    /// Empty.
    pub const fn new() -> Reason {
        Reason { bytes: [0; FILLED_MAX], filled: 0, full: false }
    }

    /// The text of something that can be shown.
    pub fn of(shown: impl fmt::Display) -> Reason {
        let mut reason = Reason::new();
        // Never fails by itself; if showing gives up, what it wrote until then is the reason.
        let _ = fmt::Write::write_fmt(&mut reason, format_args!("{shown}"));
        reason
    }

    /// What was written.
    pub fn text(&self) -> Text<'_> {
        Text(core::str::from_utf8(&self.bytes[..self.filled]).unwrap_or_default())
    }
}

impl Default for Reason {
    fn default() -> Reason {
        Reason::new()
    }
}

impl fmt::Write for Reason {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.full {
            return Ok(());
        }
        let free = &mut self.bytes[self.filled..];
        let kept = Text::cut(text);
        let kept = &kept.0[..kept.0.floor_char_boundary(free.len())];
        free[..kept.len()].copy_from_slice(kept.as_bytes());
        self.filled += kept.len();
        self.full = kept.len() < text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::fmt::Write;
    use std::string::String;

    use super::*;

    #[test]
    fn what_fits() {
        let long = "a".repeat(256);
        for bytes in [0, 1, 254, 255] {
            assert_eq!(Text::new(&long[..bytes]).unwrap().as_str(), &long[..bytes]);
            assert_eq!(Text::cut(&long[..bytes]).as_str(), &long[..bytes]);
        }
        assert_eq!(Text::new(&long), None);
        assert_eq!(Text::cut(&long).len(), 255);
        assert_eq!((Text::new("a\0b"), Text::cut("a\0b").as_str(), Text::cut("\0").as_str()), (None, "a", ""));
        let between = String::from(&long[..254]) + "é";
        assert_eq!(Text::cut(&between).as_str(), &long[..254]);
        assert_eq!(Text::default(), Text::EMPTY);
    }

    #[test]
    fn fields() {
        let decode = |bytes| Text::decode(bytes, Field::Pool).map(Text::as_str);
        assert_eq!(decode(b"aio:/dev/xvdb\0junk\xff"), Ok("aio:/dev/xvdb"));
        assert_eq!(decode(b"\0"), Ok(""));
        assert_eq!(decode(b"abc"), Err(Malformed::Field(Field::Pool, Fault::NoNul)));
        assert_eq!(decode(b"\xff\0"), Err(Malformed::Field(Field::Pool, Fault::NotUtf8)));
    }

    #[test]
    fn reasons() {
        let mut reason = Reason::default();
        assert_eq!(reason.text(), Text::EMPTY);
        write!(reason, "minor {} is ", 3).unwrap();
        reason.write_str("open").unwrap();
        assert_eq!(reason.text().as_str(), "minor 3 is open");
        write!(reason, "{}", "é".repeat(200)).unwrap();
        assert_eq!(reason.text().as_str(), String::from("minor 3 is open") + &"é".repeat(120));
        write!(reason, "x").unwrap();
        assert_eq!(reason.text().len(), 255);
        // After a gap nothing follows, though it would fit.
        let mut reason = Reason::of("a".repeat(254) + "é");
        write!(reason, "x").unwrap();
        assert_eq!(reason.text().len(), 254);
        let mut reason = Reason::of("one\0two");
        write!(reason, "three").unwrap();
        assert_eq!(reason.text().as_str(), "one");
        let exact = Reason::of("b".repeat(255));
        assert_eq!(exact.text().len(), 255);
    }
}
