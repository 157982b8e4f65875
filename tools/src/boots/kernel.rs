//! Takes the kernel proper out of Debian's vmlinuz. Xen unpacks it on every domain's creation otherwise, and that is
//! most of the time a guest takes to start under emulation.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Writes the ELF file that `vmlinuz` carries.
pub fn unpack(vmlinuz: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(vmlinuz).with_context(|| format!("reading {}", vmlinuz.display()))?;
    let payload = payload(&bytes).with_context(|| format!("{} as a kernel", vmlinuz.display()))?;
    let out = File::create(to)?;
    let mut xz = Command::new("xz")
        .args(["-dc", "--single-stream"])
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `xz`: install Debian's package xz-utils")?;
    // xz stops reading at the end of its stream, before the size that Linux keeps behind it; the result is judged below.
    let _ = xz.stdin.take().context("xz's input")?.write_all(payload);
    let ended = xz.wait_with_output()?;
    let unpacked = fs::read(to)?;
    ensure!(
        unpacked.starts_with(b"\x7fELF") && Some(unpacked.len()) == unpacked_size(payload),
        "{} did not unpack: {}",
        vmlinuz.display(),
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(())
}

/// The compressed kernel, by the setup header (Documentation/x86/boot.rst: setup_sects at 0x1f1, payload_offset at
/// 0x248 and payload_length at 0x24c, counted from the end of the setup sectors).
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup = (usize::from(*bytes.get(0x1f1)?) + 1) * 512;
    let start = setup.checked_add(word(bytes, 0x248)?)?;
    bytes.get(start..start.checked_add(word(bytes, 0x24c)?)?)
}

/// Linux appends the size of what it compressed.
fn unpacked_size(payload: &[u8]) -> Option<usize> {
    word(payload, payload.len().checked_sub(4)?)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut bytes = vec![0; 2048];
        bytes[0x1f1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x248] = 16;
        bytes[0x24c] = 8;
        bytes[1024 + 16..1024 + 24].copy_from_slice(b"abcd\x07\0\0\0");
        assert_eq!(payload(&bytes), Some(&b"abcd\x07\0\0\0"[..]));
        assert_eq!(unpacked_size(payload(&bytes).unwrap()), Some(7));
    }

    #[test]
    fn what_is_no_kernel_has_no_payload() {
        assert_eq!(payload(&[0; 100]), None);
        let mut bytes = vec![0; 2048];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x248..0x250].fill(0xff);
        assert_eq!(payload(&bytes), None);
    }
}
