//! One entry of our grant table (version 1, `grant_table.h`). Xen and the other side's activity change `flags` at any
//! moment; the rest is ours.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use xen_sys::grant_table::{GTF_invalid, GTF_permit_access, GTF_reading, GTF_readonly, GTF_writing, grant_entry_v1};

/// Entries in a page.
pub const ENTRIES_PER_PAGE: u32 = 512;

/// An entry.
#[repr(C)]
#[derive(Default)]
pub struct Entry {
    flags: AtomicU16,
    domain: AtomicU16,
    frame: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == size_of::<grant_entry_v1>());
const _: () = assert!(size_of::<Entry>() * ENTRIES_PER_PAGE as usize == 4096);

impl Entry {
    /// Grants `frame` to `domain`. The entry must not be in use.
    pub fn grant(&self, domain: u16, frame: u32, read_only: bool) {
        self.domain.store(domain, Ordering::Relaxed);
        self.frame.store(frame, Ordering::Relaxed);
        // Xen acts on the entry as soon as it is valid: the flags come last.
        self.flags.store(GTF_permit_access | if read_only { GTF_readonly } else { 0 }, Ordering::Release);
    }

    /// Ends the grant, unless the page is mapped or being copied; then nothing changes.
    pub fn end(&self) -> bool {
        let mut flags = self.flags.load(Ordering::Relaxed);
        while flags & (GTF_reading | GTF_writing) == 0 {
            match self.flags.compare_exchange(flags, GTF_invalid, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => flags = now,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_in_use_stands() {
        let entry = Entry::default();
        entry.grant(3, 0x1234, false);
        let read = |e: &Entry| {
            (e.flags.load(Ordering::SeqCst), e.domain.load(Ordering::SeqCst), e.frame.load(Ordering::SeqCst))
        };
        assert_eq!(read(&entry), (GTF_permit_access, 3, 0x1234));
        for used in [GTF_reading, GTF_writing, GTF_reading | GTF_writing] {
            entry.flags.fetch_or(used, Ordering::SeqCst);
            assert!(!entry.end());
            assert_eq!(read(&entry), (GTF_permit_access | used, 3, 0x1234));
            entry.flags.fetch_and(!used, Ordering::SeqCst);
        }
        assert!(entry.end());
        assert_eq!(read(&entry).0, GTF_invalid);
    }

    #[test]
    fn read_only_is_said() {
        let entry = Entry::default();
        entry.grant(0, 1, true);
        assert_eq!(entry.flags.load(Ordering::SeqCst), GTF_permit_access | GTF_readonly);
        assert!(entry.end());
    }
}
