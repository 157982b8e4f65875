//! The text format of lvm2's metadata and configuration (`lvm.conf(5)`, `lvmconfig(8)`) as a stream: sections and values
//! come out as the bytes go in, and no more than one name and one value is kept.

use heapless::Vec;

use super::{Bad, Wrong};

/// Sections within each other at most; metadata has four.
pub const DEPTH_MAX: u32 = 8;
/// Bytes of a name at most; lvm2's own have up to 127.
pub const KEY_BYTES_MAX: usize = 128;
/// Bytes of a value that are kept; a longer one comes as [`Value::Other`].
pub const VALUE_BYTES_MAX: usize = 256;

/// What the text says, piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A section begins.
    Begin(&'a str),
    /// It ends.
    End,
    /// A value of this name; each one of an array by itself, and none for an empty array.
    Value(&'a str, Value<'a>),
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number that is not negative.
    Number(u64),
    /// A text.
    Text(&'a str),
    /// Something else: a negative or fractional number, a text that is too long to be kept or is not UTF-8.
    Other,
}

/// Where in the text we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before a name or the end of a section.
    Start,
    /// In a name.
    Key,
    /// Behind a name: a section or a value follows.
    Behind,
    /// Behind the equals sign.
    Equals,
    /// In an array, before a value or the end.
    Array,
    /// In an array, behind a value.
    Comma,
    /// In a number.
    Number,
    /// In a text in double quotes, where a backslash makes the next character mean itself.
    Quoted,
    /// Behind such a backslash.
    Escaped,
    /// In a text in single quotes, where it does not.
    Literal,
    /// Behind the zero that ends it all.
    Over,
}

/// Reads a text that is fed to it.
pub struct Reader {
    at: At,
    in_array: bool,
    comment: bool,
    depth: u32,
    line: u32,
    key: Vec<u8, KEY_BYTES_MAX>,
    value: Vec<u8, VALUE_BYTES_MAX>,
    /// The value is longer than what is kept.
    cut: bool,
}

impl Reader {
    /// At the beginning.
    #[expect(clippy::new_without_default, reason = "a reader begins, it has no usual value")]
    pub fn new() -> Reader {
        Reader {
            at: At::Start,
            in_array: false,
            comment: false,
            depth: 0,
            line: 1,
            key: Vec::new(),
            value: Vec::new(),
            cut: false,
        }
    }

    /// How many sections are open.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Reads the next bytes and calls `each` for what they complete. After an error nothing more is to be fed.
    pub fn read<E: From<Bad>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        bytes.iter().try_for_each(|byte| self.step(*byte, &mut each))
    }

    /// Whether it ended where a text may end.
    pub fn finish(&self) -> Result<(), Bad> {
        let whole = matches!(self.at, At::Start | At::Over) && self.depth == 0;
        if whole { Ok(()) } else { Err(self.bad(Wrong::End)) }
    }

    fn bad(&self, wrong: Wrong) -> Bad {
        Bad::Text(self.line, wrong)
    }

    fn step<E: From<Bad>>(&mut self, byte: u8, each: &mut impl FnMut(Item<'_>) -> Result<(), E>) -> Result<(), E> {
        if byte == b'\n' {
            self.line = self.line.saturating_add(1);
            self.comment = false;
        }
        if self.comment {
            return Ok(());
        }
        match self.at {
            At::Over => return Ok(()),
            At::Quoted if byte == b'\\' => self.at = At::Escaped,
            At::Quoted if byte == b'"' => return self.end_text(each),
            At::Literal if byte == b'\'' => return self.end_text(each),
            At::Quoted | At::Literal => self.keep(byte),
            At::Escaped => {
                self.keep(byte);
                self.at = At::Quoted;
            }
            At::Number if !is_between(byte) => self.keep(byte),
            At::Key if !is_between(byte) => {
                if self.key.push(byte).is_err() {
                    return Err(self.bad(Wrong::Long).into());
                }
            }
            At::Number => {
                self.end_number(each)?;
                return self.between(byte, each);
            }
            At::Key => {
                self.at = At::Behind;
                return self.between(byte, each);
            }
            _ => return self.between(byte, each),
        }
        Ok(())
    }

    /// A byte that is in no name and no value.
    fn between<E: From<Bad>>(&mut self, byte: u8, each: &mut impl FnMut(Item<'_>) -> Result<(), E>) -> Result<(), E> {
        self.at = match (self.at, byte) {
            (at, b'#') => {
                self.comment = true;
                at
            }
            (at, b' ' | b'\t' | b'\r' | b'\n') => at,
            (At::Start, 0) if self.depth == 0 => At::Over,
            (At::Start, b'}') if self.depth > 0 => {
                self.depth -= 1;
                each(Item::End)?;
                At::Start
            }
            (At::Start, first) if !is_between(first) => {
                self.key.clear();
                // One byte fits.
                let _ = self.key.push(first);
                At::Key
            }
            (At::Behind, b'{') => {
                if self.depth == DEPTH_MAX {
                    return Err(self.bad(Wrong::Deep).into());
                }
                self.depth += 1;
                each(Item::Begin(self.key()?))?;
                At::Start
            }
            (At::Behind, b'=') => At::Equals,
            (At::Equals, b'[') => {
                self.in_array = true;
                At::Array
            }
            (At::Array | At::Comma, b']') => {
                self.in_array = false;
                At::Start
            }
            (At::Comma, b',') => At::Array,
            (At::Equals | At::Array, b'"') => self.begin(At::Quoted),
            (At::Equals | At::Array, b'\'') => self.begin(At::Literal),
            (At::Equals | At::Array, first @ (b'0'..=b'9' | b'+' | b'-' | b'.')) => {
                let at = self.begin(At::Number);
                self.keep(first);
                at
            }
            (_, byte) => return Err(self.bad(Wrong::Character(byte)).into()),
        };
        Ok(())
    }

    fn begin(&mut self, at: At) -> At {
        self.value.clear();
        self.cut = false;
        at
    }

    fn keep(&mut self, byte: u8) {
        self.cut |= self.value.push(byte).is_err();
    }

    fn key(&self) -> Result<&str, Bad> {
        // The first byte above ASCII is the one to name: all others may be in a name.
        let wrong = |_| self.bad(Wrong::Character(self.key.iter().copied().find(|byte| *byte >= 0x80).unwrap_or(0)));
        str::from_utf8(&self.key).map_err(wrong)
    }

    fn end_text<E: From<Bad>>(&mut self, each: &mut impl FnMut(Item<'_>) -> Result<(), E>) -> Result<(), E> {
        let value = match str::from_utf8(&self.value) {
            Ok(text) if !self.cut => Value::Text(text),
            _ => Value::Other,
        };
        each(Item::Value(self.key()?, value))?;
        self.at = self.behind_value();
        Ok(())
    }

    fn end_number<E: From<Bad>>(&mut self, each: &mut impl FnMut(Item<'_>) -> Result<(), E>) -> Result<(), E> {
        let value = match crate::number::u64(&self.value[..]) {
            Some(number) if !self.cut => Value::Number(number),
            _ => Value::Other,
        };
        each(Item::Value(self.key()?, value))?;
        self.at = self.behind_value();
        Ok(())
    }

    fn behind_value(&self) -> At {
        if self.in_array { At::Comma } else { At::Start }
    }
}

/// Whether a byte ends a name or a number.
fn is_between(byte: u8) -> bool {
    byte <= b' ' || matches!(byte, b'#' | b'=' | b'{' | b'}' | b'[' | b']' | b',' | b'"' | b'\'' | 0x7f)
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;

    fn items(text: &[u8], piece: usize) -> Result<Vec<String>, Bad> {
        let (mut reader, mut items) = (Reader::new(), Vec::new());
        for bytes in text.chunks(piece) {
            reader.read(bytes, |item| {
                items.push(match item {
                    Item::Begin(name) => format!("{name}{{"),
                    Item::End => "}".to_string(),
                    Item::Value(key, value) => format!("{key}={value:?}"),
                });
                Ok::<_, Bad>(())
            })?;
        }
        reader.finish()?;
        Ok(items)
    }

    #[test]
    fn all_that_a_text_has() {
        let text = concat!(
            "vg-1.x+y_z {\n\tid = \"a\\\"b\\\\c\"# it's \"quoted\" } [\n  1st{n=0 x=1}\n",
            "flags = []\narray=[\"one\" , 2,'th\\ree',\n# within\n]\nlast = 18446744073709551615 minus=-5 float=1.5\n}\n",
            "# behind\ndescription = \"\"\n\0 } garbage \" \0"
        );
        let expected = [
            "vg-1.x+y_z{",
            "id=Text(\"a\\\"b\\\\c\")",
            "1st{",
            "n=Number(0)",
            "x=Number(1)",
            "}",
            "array=Text(\"one\")",
            "array=Number(2)",
            "array=Text(\"th\\\\ree\")",
            "last=Number(18446744073709551615)",
            "minus=Other",
            "float=Other",
            "}",
            "description=Text(\"\")",
        ];
        for piece in 1..=text.len() {
            assert_eq!(items(text.as_bytes(), piece).unwrap(), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, wrong) in [
            ("}", 1, Wrong::Character(b'}')),
            ("a\nb {", 2, Wrong::Character(b'b')),
            ("a = {", 1, Wrong::Character(b'{')),
            ("a = [ [", 1, Wrong::Character(b'[')),
            ("a = [ 1 2 ]", 1, Wrong::Character(b'2')),
            ("a = [ , ]", 1, Wrong::Character(b',')),
            ("a = bare", 1, Wrong::Character(b'b')),
            ("\"a\" = 1", 1, Wrong::Character(b'"')),
            ("a {\n\0}", 2, Wrong::Character(0)),
            ("a = 1 = 2", 1, Wrong::Character(b'=')),
            ("a", 1, Wrong::End),
            ("a {\nb = 1\n", 3, Wrong::End),
            ("a = \"x", 1, Wrong::End),
            ("a = \"x\\\"", 1, Wrong::End),
            ("a = [", 1, Wrong::End),
            ("a = 5", 1, Wrong::End),
        ] {
            assert_eq!(items(text.as_bytes(), 3), Err(Bad::Text(line, wrong)), "{text:?}");
        }
        assert_eq!(items(b"a\xff = 1 ", 9), Err(Bad::Text(1, Wrong::Character(0xff))));
        assert_eq!(items(b"a = \"\xff\"", 9).unwrap(), ["a=Other"]);
    }

    #[test]
    fn bounds() {
        let deep = |n: usize| items(["a{".repeat(n), "}".repeat(n)].concat().as_bytes(), 64);
        assert_eq!(deep(DEPTH_MAX as usize).unwrap().len(), 2 * DEPTH_MAX as usize);
        assert_eq!(deep(DEPTH_MAX as usize + 1), Err(Bad::Text(1, Wrong::Deep)));
        let long = |n: usize| items(["a".repeat(n), "{}".into()].concat().as_bytes(), 64);
        assert_eq!(long(KEY_BYTES_MAX).unwrap().len(), 2);
        assert_eq!(long(KEY_BYTES_MAX + 1), Err(Bad::Text(1, Wrong::Long)));
        let value = |n: usize| items(format!("a=\"{}\" b=1 ", "x".repeat(n)).as_bytes(), 64).unwrap();
        assert_eq!(value(VALUE_BYTES_MAX)[0], format!("a=Text(\"{}\")", "x".repeat(VALUE_BYTES_MAX)));
        assert_eq!(value(VALUE_BYTES_MAX + 1), ["a=Other", "b=Number(1)"]);
        assert_eq!(items(format!("a={} ", "1".repeat(21)).as_bytes(), 64).unwrap(), ["a=Other"]);
        assert_eq!(items(format!("a={} ", "1".repeat(400)).as_bytes(), 64).unwrap(), ["a=Other"]);
    }
}
