//! Decimal numbers as store nodes carry them.
//!
//! Stricter than the `sscanf` of other backends on purpose: digits only, so that a node has one reading. A sign, a
//! space, a terminator, nothing at all, or a value too large is no number.

use core::fmt::Write;

use heapless::String;

/// The longest text that is read: the digits of `u64::MAX`. Bounds the work on a hostile node.
pub const DIGITS_MAX: usize = 20;

/// Reads a decimal number; `None` if `text` is anything else.
pub fn u64(text: impl AsRef<[u8]>) -> Option<u64> {
    let text = text.as_ref();
    if text.is_empty() || text.len() > DIGITS_MAX {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Reads a decimal number up to `u32::MAX`; `None` if `text` is anything else.
pub fn u32(text: impl AsRef<[u8]>) -> Option<u32> {
    u64(text)?.try_into().ok()
}

/// Reads a decimal number up to `u16::MAX`, a domain id for instance; `None` if `text` is anything else.
pub fn u16(text: impl AsRef<[u8]>) -> Option<u16> {
    u64(text)?.try_into().ok()
}

/// Reads the two values of a feature node: `"0"` and `"1"`.
pub fn flag(text: impl AsRef<[u8]>) -> Option<bool> {
    match text.as_ref() {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    }
}

/// The text of a number, as it goes into a node.
pub fn text(value: u64) -> String<DIGITS_MAX> {
    let mut text = String::new();
    // Never too long: the capacity is that of the largest value.
    let _ = write!(text, "{value}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_only() {
        assert_eq!(u64("0"), Some(0));
        assert_eq!(u64("51712"), Some(51712));
        assert_eq!(u64("007"), Some(7));
        for wrong in ["", "-1", "+1", " 1", "1 ", "1\n", "1\0", "0x10", "1.0", "abc", "١", "/", ":"] {
            assert_eq!(u64(wrong), None, "{wrong:?}");
        }
        assert_eq!(u64([0xffu8].as_slice()), None);
    }

    #[test]
    fn bounds() {
        assert_eq!(u64("18446744073709551615"), Some(u64::MAX));
        assert_eq!(u64("18446744073709551616"), None);
        assert_eq!(u64("99999999999999999999"), None);
        assert_eq!(u64("000000000000000000001"), None);
        assert_eq!(u32("4294967295"), Some(u32::MAX));
        assert_eq!(u32("4294967296"), None);
        assert_eq!(u16("65535"), Some(u16::MAX));
        assert_eq!(u16("65536"), None);
    }

    #[test]
    fn flags_have_one_spelling() {
        assert_eq!((flag("0"), flag("1")), (Some(false), Some(true)));
        assert_eq!((flag(""), flag("2"), flag("01"), flag("true")), (None, None, None, None));
    }

    #[test]
    fn texts() {
        assert_eq!(text(0).as_str(), "0");
        assert_eq!(text(u64::MAX).as_str(), "18446744073709551615");
    }
}
