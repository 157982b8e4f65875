//! Names of logical volumes, in the two spellings that device nodes have.

use heapless::String;

/// Bytes of a name at most: lvm2's NAME_LEN is 128 with the zero behind it.
const NAME_BYTES_MAX: usize = 127;

/// A group and a volume in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The group's name.
    pub group: String<NAME_BYTES_MAX>,
    /// The volume's name.
    pub volume: String<NAME_BYTES_MAX>,
}

/// Whether a group or a volume may have this name (`lvm(8)`, "Valid names").
pub fn is_name(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'_' | b'.' | b'-');
    let sized = (1..=NAME_BYTES_MAX).contains(&text.len());
    sized && text.bytes().all(known) && !text.starts_with('-') && text != "." && text != ".."
}

impl Name {
    /// A name of two parts, each one that may be.
    pub fn new(group: &str, volume: &str) -> Option<Name> {
        let part = |text| if is_name(text) { String::try_from(text).ok() } else { None };
        Some(Name { group: part(group)?, volume: part(volume)? })
    }

    /// Reads `/dev/VG/LV`, or `/dev/mapper/VG-LV` where hyphens within a name are doubled.
    pub fn parse(path: &str) -> Option<Name> {
        let (folder, file) = path.strip_prefix("/dev/")?.split_once('/')?;
        if folder != "mapper" {
            return Name::new(folder, file);
        }
        let mut parts: [String<NAME_BYTES_MAX>; 2] = Default::default();
        let (mut part, mut characters) = (0, file.chars().peekable());
        while let Some(character) = characters.next() {
            if character == '-' && characters.next_if_eq(&'-').is_none() {
                part += 1;
            } else {
                parts.get_mut(part)?.push(character).ok()?;
            }
        }
        Name::new(&parts[0], &parts[1])
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "/dev/{}/{}", self.group, self.volume)
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;

    use super::*;

    fn parts(path: &str) -> Option<(std::string::String, std::string::String)> {
        Name::parse(path).map(|name| (name.group.to_string(), name.volume.to_string()))
    }

    #[test]
    fn two_spellings() {
        let pair = |group: &str, volume: &str| Some((group.to_string(), volume.to_string()));
        assert_eq!(parts("/dev/vg/lv"), pair("vg", "lv"));
        assert_eq!(parts("/dev/mapper/vg-lv"), pair("vg", "lv"));
        assert_eq!(parts("/dev/mapper/a--b-c--d"), pair("a-b", "c-d"));
        assert_eq!(parts("/dev/mapper/a----b-c"), pair("a--b", "c"));
        assert_eq!(parts("/dev/mapper/vg---c"), pair("vg-", "c"));
        assert_eq!(parts("/dev/a-b/c--d"), pair("a-b", "c--d"));
        let group = "VG_XenStorage-e4a9ac4c-5ab8-4d3c-9d8f-0c2b4f4a7a11";
        let volume = "VHD-0f8f2a2c-1c5e-4b1f-9a3d-6a0c3f0b8a55";
        assert_eq!(parts(&format!("/dev/{group}/{volume}")), pair(group, volume));
        let mapped = format!("/dev/mapper/{}-{}", group.replace('-', "--"), volume.replace('-', "--"));
        assert_eq!(parts(&mapped), pair(group, volume));
        assert_eq!(Name::parse(&mapped).unwrap().to_string(), format!("/dev/{group}/{volume}"));
        let longest = "a".repeat(127);
        assert_eq!(parts(&format!("/dev/{longest}/{longest}")), pair(&longest, &longest));
    }

    #[test]
    fn what_is_no_name() {
        for path in [
            "",
            "vg/lv",
            "/dev/vg",
            "/dev//lv",
            "/dev/vg/",
            "/dev/vg/a/b",
            "/dev/vg/..",
            "/dev/./lv",
            "/dev/-vg/lv",
            "/dev/vg/-lv",
            "/dev/vg/l v",
            "/dev/vg/l:v",
            "/dev/vg/é",
            "/dev/mapper/vg",
            "/dev/mapper/vg-",
            "/dev/mapper/-lv",
            "/dev/mapper/vg-lv-x",
            "/dev/mapper/a--b",
            "/dev/mapper/",
            "/dev/mapper/vg-a/b",
        ] {
            assert_eq!(Name::parse(path), None, "{path}");
        }
        let long = "a".repeat(128);
        assert_eq!(Name::parse(&format!("/dev/{long}/lv")), None);
        assert_eq!(Name::parse(&format!("/dev/vg/{long}")), None);
        assert_eq!(Name::parse(&format!("/dev/mapper/vg-{long}")), None);
    }
}
