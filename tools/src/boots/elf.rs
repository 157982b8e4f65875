//! The two questions a boot image asks of an ELF file: which shared libraries does a program need, and which other
//! modules does a kernel module need. Asked of the files themselves, so no list of ours can go stale.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, elf};

/// Where Debian keeps shared libraries, below the root of an unpacked package.
const LIBRARY_FOLDERS: [&str; 4] =
    ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph", "usr/lib"];

/// The names in the `DT_NEEDED` entries of a program or library. A static program needs none.
pub fn needed(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    needed_in(&bytes).with_context(|| format!("{} as an ELF file", path.display()))
}

fn needed_in(bytes: &[u8]) -> Result<Vec<String>> {
    let header = elf::FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    let Some((entries, strings_at)) = sections.dynamic(endian, bytes)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, bytes, strings_at)?;
    let mut names = Vec::new();
    for entry in entries.iter().take_while(|entry| entry.d_tag(endian) != u64::from(elf::DT_NULL)) {
        if entry.d_tag(endian) == u64::from(elf::DT_NEEDED) {
            let offset = u32::try_from(entry.d_val(endian))?;
            let name = strings.get(offset).map_err(|()| anyhow!("a library's name is outside the string table"))?;
            names.push(String::from_utf8(name.to_vec())?);
        }
    }
    Ok(names)
}

/// Every library that these programs need, and what those need, as name and file below `root`.
pub fn libraries(root: &Path, programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut open: Vec<PathBuf> = programs.to_vec();
    while let Some(path) = open.pop() {
        for name in needed(&path)? {
            if found.contains_key(&name) {
                continue;
            }
            let library = LIBRARY_FOLDERS
                .iter()
                .map(|folder| root.join(folder).join(&name))
                .find(|candidate| candidate.exists())
                .with_context(|| {
                    format!(
                        "{} needs {name}, which no fetched package holds: add its package to PACKAGES in \
                             tools/src/boots/parts.rs",
                        path.display()
                    )
                })?;
            open.push(library.clone());
            found.insert(name, library);
        }
    }
    Ok(found)
}

/// The modules that a kernel module needs (its `depends=` in `.modinfo`), by name.
pub fn module_needs(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = ElfFile64::<Endianness>::parse(&*bytes).with_context(|| format!("{} as a module", path.display()))?;
    let section = file.section_by_name(".modinfo").with_context(|| format!("{} is no module", path.display()))?;
    Ok(depends(section.data()?))
}

fn depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|&byte| byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_test_needs_libc() {
        let names = needed(&std::env::current_exe().unwrap()).unwrap();
        assert!(names.iter().any(|name| name == "libc.so.6"), "{names:?}");
    }

    #[test]
    fn a_text_is_not_a_program() {
        assert!(needed_in(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn modinfo_names_what_a_module_needs() {
        let modinfo = b"license=GPL\0depends=mbcache,jbd2\0name=ext4\0";
        assert_eq!(depends(modinfo), ["mbcache", "jbd2"]);
        assert_eq!(depends(b"license=GPL\0depends=\0"), Vec::<String>::new());
    }
}
