//! Names of disks: `TYPE:SOURCE`, blktap's spelling, as they stand in a toolstack's `target=`.

use core::fmt;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use protocol::errno::Errno;
use protocol::lvm;
use protocol::number;
use xen::limits::TARGET_BYTES;

/// Why a disk cannot be opened: an errno as the toolstack knows it, and a text that names the thing and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError {
    /// Its number.
    pub errno: Errno,
    /// The thing and the reason.
    pub text: String,
}

impl OpenError {
    /// An error with its text.
    pub fn new(errno: Errno, text: impl Into<String>) -> Self {
        OpenError { errno, text: text.into() }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.errno.number(), self.text)
    }
}

/// What a name names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `ram:SIZE`: so many pages of memory.
    Ram {
        /// How many.
        pages: usize,
    },
    /// `aio:` or `raw:`: sectors as they are.
    Raw(Source),
    /// `vhd:`: the VHD on them.
    Vhd(Source),
}

/// Where an image lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `/dev/xvdX`: a lower disk, or a partition of it.
    Lower(Lower),
    /// `/dev/VG/LV`: a logical volume on lower disks.
    Logical(Box<lvm::Name>),
}

impl Source {
    fn parse(text: &str) -> Option<Source> {
        lower(text).map(Source::Lower).or_else(|| lvm::Name::parse(text).map(|name| Source::Logical(Box::new(name))))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Lower(lower) => lower.fmt(f),
            Source::Logical(name) => name.fmt(f),
        }
    }
}

/// A disk below us, as the guest naming of Xen has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lower {
    /// The device number of the whole disk (`virtual-device`).
    pub device: u32,
    /// The GPT partition on it, from 1 on.
    pub partition: Option<u32>,
}

impl Target {
    /// Parses a name. What a toolstack says is quoted back only as far as it is printable, and not at length.
    pub fn parse(name: &str) -> Result<Target, OpenError> {
        let invalid = |why: &str| OpenError::new(Errno::EINVAL, format!("target \"{}\": {why}", Quoted(name)));
        if name.len() > TARGET_BYTES {
            return Err(invalid("longer than 1024 bytes"));
        }
        if name.bytes().any(|byte| !(0x20..0x7f).contains(&byte)) {
            return Err(invalid("holds bytes that are not printable ASCII"));
        }
        let (kind, source) = match name.split_once(':') {
            Some((kind, source)) => (kind, source),
            // xl's format=raw gives the bare path.
            None if name.starts_with('/') => ("aio", name),
            None => return Err(invalid("not of the form TYPE:SOURCE, as aio:/dev/xvda")),
        };
        match kind {
            "ram" => match size(source) {
                Some(bytes) => Ok(Target::Ram { pages: (bytes / xen::page::PAGE_BYTES as u64) as usize }),
                None => Err(invalid("the size is not a multiple of 4096 bytes between 4K and 1T, as 64M")),
            },
            "aio" | "raw" | "vhd" => match Source::parse(source) {
                Some(source) => Ok(if kind == "vhd" { Target::Vhd(source) } else { Target::Raw(source) }),
                None => Err(invalid("the source is not a lower disk or a logical volume, as /dev/xvda1 or /dev/VG/LV")),
            },
            _ => Err(OpenError::new(
                Errno::ENOENT,
                format!("target \"{}\": type \"{}\" is none of aio, raw, vhd, ram", Quoted(name), Quoted(kind)),
            )),
        }
    }
}

/// `64M`, `1G`, `4096`: bytes with an optional K, M or G.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = number::u64(digits)?.checked_mul(1 << unit)?;
    (bytes > 0 && bytes.is_multiple_of(xen::page::PAGE_BYTES as u64) && bytes <= 1 << 40).then_some(bytes)
}

/// `/dev/xvda` to `/dev/xvdzz`, with a partition number or without.
fn lower(source: &str) -> Option<Lower> {
    let name = source.strip_prefix("/dev/xvd")?;
    let letters = name.bytes().take_while(u8::is_ascii_lowercase).count();
    let disk = match name.as_bytes()[..letters] {
        [one] => u32::from(one - b'a'),
        [one, two] => (u32::from(one - b'a') + 1) * 26 + u32::from(two - b'a'),
        _ => return None,
    };
    let partition = match &name[letters..] {
        "" => None,
        digits => Some(number::u32(digits).filter(|n| (1..=128).contains(n) && !digits.starts_with('0'))?),
    };
    // docs/man/xen-vbd-interface.7 of Xen: the first 16 disks have the old numbers.
    let device = if disk < 16 { 202 << 8 | disk << 4 } else { 1 << 28 | disk << 8 };
    Some(Lower { device, partition })
}

impl fmt::Display for Lower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = if self.device >> 28 == 1 { (self.device >> 8) & 0xf_ffff } else { (self.device >> 4) & 0xf };
        // Letters by construction: `lower` makes disks below 27 * 26 only, other numbers show as they are.
        match disk {
            0..26 => write!(f, "/dev/xvd{}", (b'a' + disk as u8) as char)?,
            26..702 => {
                let (high, low) = (b'a' + (disk / 26 - 1) as u8, b'a' + (disk % 26) as u8);
                write!(f, "/dev/xvd{}{}", high as char, low as char)?
            }
            _ => write!(f, "device {}", self.device)?,
        }
        self.partition.map_or(Ok(()), |n| write!(f, "{n}"))
    }
}

/// A peer's text made fit for a log line: the first 64 characters, unprintable ones as dots.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for c in self.0.chars().take(64) {
            f.write_char(if c == ' ' || c.is_ascii_graphic() { c } else { '.' })?;
        }
        if self.0.chars().nth(64).is_some() { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_that_mean_something() {
        let raw = |device, partition| Ok(Target::Raw(Source::Lower(Lower { device, partition })));
        let logical = |group, volume| Source::Logical(Box::new(lvm::Name::new(group, volume).unwrap()));
        assert_eq!(Target::parse("ram:64M"), Ok(Target::Ram { pages: 16384 }));
        assert_eq!(Target::parse("ram:4096"), Ok(Target::Ram { pages: 1 }));
        assert_eq!(Target::parse("aio:/dev/xvda"), raw(51712, None));
        assert_eq!(Target::parse("raw:/dev/xvdb3"), raw(51728, Some(3)));
        assert_eq!(Target::parse("/dev/xvdp"), raw(51952, None));
        assert_eq!(Target::parse("aio:/dev/xvdq128"), raw(1 << 28 | 16 << 8, Some(128)));
        let second = Source::Lower(Lower { device: 51728, partition: None });
        assert_eq!(Target::parse("vhd:/dev/xvdb"), Ok(Target::Vhd(second)));
        assert_eq!(Target::parse("aio:/dev/vg/lv"), Ok(Target::Raw(logical("vg", "lv"))));
        assert_eq!(Target::parse("/dev/mapper/vg--0-lv"), Ok(Target::Raw(logical("vg-0", "lv"))));
        let vhd =
            "vhd:/dev/VG_XenStorage-e4a9ac4c-5ab8-4d3c-9d8f-0c2b4f4a7a11/VHD-0f8f2a2c-1c5e-4b1f-9a3d-6a0c3f0b8a55";
        let (group, volume) = vhd["vhd:/dev/".len()..].split_once('/').unwrap();
        assert_eq!(Target::parse(vhd), Ok(Target::Vhd(logical(group, volume))));
        assert_eq!(Target::parse("aio:/dev/xvdaa"), raw(1 << 28 | 26 << 8, None));
    }

    #[test]
    fn names_that_do_not_are_refused_with_name_and_reason() {
        for (name, says) in [
            ("", "TYPE:SOURCE"),
            ("xvda", "TYPE:SOURCE"),
            ("vmdk:/dev/xvda", "type \"vmdk\" is none of"),
            ("ram:", "size"),
            ("ram:0", "size"),
            ("ram:1", "size"),
            ("ram:18446744073709551615G", "size"),
            // 1 GiB more than 2^64.
            ("ram:17179869185G", "size"),
            ("ram:-1", "size"),
            ("aio:/dev/sda", "not a lower disk"),
            ("aio:/dev/xvd", "not a lower disk"),
            ("aio:/dev/xvda0", "not a lower disk"),
            ("aio:/dev/xvda129", "not a lower disk"),
            ("aio:/dev/xvda01", "not a lower disk"),
            ("aio:/dev/xvdabc", "not a lower disk"),
            ("aio:/dev/xvda/..", "not a lower disk"),
            ("vhd:/dev/vg/lv/x", "not a lower disk or a logical volume"),
            ("vhd:/dev/mapper/vg", "not a lower disk or a logical volume"),
            ("aio:\u{1b}[2J", "not printable"),
            ("aio:/dev/xvdä", "not printable"),
        ] {
            let error = Target::parse(name).unwrap_err();
            assert!(error.text.contains(says), "{name:?}: {error}");
            assert!(error.text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{error}");
        }
        let long = Target::parse(&"a".repeat(10_000)).unwrap_err();
        assert!(long.text.len() < 200 && long.text.contains("longer"), "{long}");
    }

    #[test]
    fn a_lower_disk_shows_as_it_was_named() {
        for name in ["/dev/xvda", "/dev/xvdp2", "/dev/xvdq", "/dev/xvdz9", "/dev/xvdaa", "/dev/xvdzz1"] {
            assert_eq!(lower(name).unwrap().to_string(), name);
        }
    }
}
