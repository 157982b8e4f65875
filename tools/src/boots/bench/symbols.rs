//! Whose instruction is at an address, by name: Xen tells dom0 its functions, tapdom's are in its ELF file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, SymbolKind};

use super::counts::TAPDOM;

/// Functions by address.
type Table = BTreeMap<u64, String>;

/// All names.
#[derive(Default)]
pub struct Symbols {
    xen: Table,
    tapdom: Table,
}

/// Where Xen's own code is (`XEN_VIRT_START` of asm-x86/config.h), and where it ends.
const XEN: std::ops::Range<u64> = 0xffff_82d0_4000_0000..0xffff_82d0_8000_0000;
/// Linux's kernel, and its modules behind it.
const LINUX: u64 = 0xffff_ffff_8000_0000;
const MODULES: u64 = 0xffff_ffff_c000_0000;
/// Xen's again, which maps pages there and has its stubs there, up to Linux.
const KERNEL: u64 = 0xffff_8000_0000_0000;

impl Symbols {
    /// Of what dom0 told of Xen, and of the image: that with symbols lies beside the one that boots.
    pub fn new(xen: &str, image: &Path) -> Result<Symbols> {
        let debug = image.with_extension("debug");
        let tapdom = if debug.exists() { functions(&debug)? } else { Table::new() };
        Ok(Symbols { xen: parse(xen), tapdom })
    }

    /// Where a function of Xen is.
    pub fn xen(&self, name: &str) -> Option<u64> {
        self.xen.iter().find(|(_, known)| *known == name).map(|(address, _)| *address)
    }

    /// The function at an address that this processor executed, and whether it begins there.
    pub fn name(&self, processor: usize, address: u64) -> (String, bool) {
        let (who, table) = match address {
            address if XEN.contains(&address) => ("xen", Some(&self.xen)),
            address if address >= MODULES => ("linux's modules", None),
            address if address >= LINUX => ("linux", None),
            address if address >= KERNEL => ("xen", None),
            _ if processor == TAPDOM => ("tapdom", Some(&self.tapdom)),
            _ => ("program", None),
        };
        let function = table.and_then(|table| table.range(..=address).next_back());
        let begins = function.is_some_and(|(begin, _)| *begin == address);
        (format!("{who}: {}", function.map_or("?", |(_, name)| name)), begins)
    }
}

fn parse(text: &str) -> Table {
    let entry = |line: &str| {
        let (address, name) = line.split_once(' ')?;
        Some((u64::from_str_radix(address, 16).ok()?, name.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

fn functions(file: &Path) -> Result<Table> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let elf = object::File::parse(bytes.as_slice()).with_context(|| format!("{} as ELF", file.display()))?;
    let functions = elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    Ok(functions.filter_map(|symbol| Some((symbol.address(), readable(symbol.name().ok()?)))).collect())
}

/// A function's path without the hash that the compiler adds.
fn readable(name: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(name));
    name.replace(" as ", ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_names_of_their_owners() {
        let symbols = Symbols {
            xen: parse("ffff82d040200000 start\nffff82d040201000 do_grant_table_op\n"),
            tapdom: [(0x10_0000, "kernel::run".to_owned())].into(),
        };
        let name = |processor, address| symbols.name(processor, address).0;
        assert_eq!(name(0, 0xffff_82d0_4020_1234), "xen: do_grant_table_op");
        assert_eq!(name(0, 0xffff_ffff_8100_1004), "linux: ?");
        assert_eq!(name(1, 0xffff_ffff_c000_1004), "linux's modules: ?");
        assert_eq!(name(TAPDOM, 0x10_0010), "tapdom: kernel::run");
        assert_eq!(name(1, 0x10_0010), "program: ?");
        assert!(symbols.name(TAPDOM, 0x10_0000).1 && !symbols.name(TAPDOM, 0x10_0010).1);
        assert_eq!(symbols.xen("do_grant_table_op"), Some(0xffff_82d0_4020_1000));
    }
}
