//! The console ring (`io/console.h`): what we say, read by dom0's console daemon when it likes.

use core::mem::offset_of;

use protocol::mem::Memory;
use xen_sys::console::xencons_interface;

const OUT: usize = offset_of!(xencons_interface, out);
const CONSUMED: usize = offset_of!(xencons_interface, out_cons);
const PRODUCED: usize = offset_of!(xencons_interface, out_prod);
const BYTES: u32 = (CONSUMED - OUT - 8) as u32;

const _: () = assert!(BYTES == 2048 && BYTES.is_power_of_two());

/// Our end of the ring.
pub struct Ring<M> {
    memory: M,
    produced: u32,
    lost: usize,
}

impl<M: core::ops::Deref<Target: Memory>> Ring<M> {
    /// Goes on where the ring is: its indices need not start at 0.
    pub fn new(memory: M) -> Self {
        let produced = memory.load(PRODUCED);
        Ring { memory, produced, lost: 0 }
    }

    /// Bytes the daemon has not read. More than the ring holds is nonsense, and means that nothing more fits.
    fn unread(&self) -> u32 {
        self.produced.wrapping_sub(self.memory.load(CONSUMED)).min(BYTES)
    }

    /// Whether the daemon has read everything.
    pub fn is_read(&self) -> bool {
        self.unread() == 0
    }

    /// Puts what fits and drops the rest. What was dropped is told as soon as there is room for it.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.lost > 0 {
            let mut note = heapless::String::<48>::new();
            let told = core::fmt::write(&mut note, format_args!("[{} bytes lost]\r\n", self.lost));
            if told.is_err() || note.len() > (BYTES - self.unread()) as usize {
                self.lost = self.lost.saturating_add(bytes.len());
                return;
            }
            self.lost = 0;
            self.copy(note.as_bytes());
        }
        let fits = bytes.len().min((BYTES - self.unread()) as usize);
        self.copy(&bytes[..fits]);
        self.lost = bytes.len() - fits;
    }

    fn copy(&mut self, bytes: &[u8]) {
        let start = self.produced % BYTES;
        let (first, second) = bytes.split_at(bytes.len().min((BYTES - start) as usize));
        self.memory.write(OUT + start as usize, first);
        self.memory.write(OUT, second);
        self.produced = self.produced.wrapping_add(bytes.len() as u32);
        self.memory.store(PRODUCED, self.produced);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::page::Page;

    fn read(page: &Page) -> String {
        let (mut at, end) = (page.load(CONSUMED), page.load(PRODUCED));
        let mut text = Vec::new();
        while at != end {
            let mut byte = [0];
            page.read(OUT + (at % BYTES) as usize, &mut byte);
            text.push(byte[0]);
            at = at.wrapping_add(1);
        }
        page.store(CONSUMED, at);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn bytes_go_round_the_end() {
        let page = Page::zeroed();
        for start in [0, 2040, u32::MAX - 3] {
            page.store(CONSUMED, start);
            page.store(PRODUCED, start);
            let mut ring = Ring::new(&page);
            ring.put(b"over the edge of the ring");
            assert!(!ring.is_read());
            assert_eq!(read(&page), "over the edge of the ring");
            assert!(ring.is_read());
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told() {
        let page = Page::zeroed();
        let mut ring = Ring::new(&page);
        ring.put(&[b'x'; 2040]);
        ring.put(b"0123456789");
        ring.put(b"gone");
        assert_eq!(read(&page), "x".repeat(2040) + "01234567");
        ring.put(b"back");
        assert_eq!(read(&page), "[6 bytes lost]\r\nback");
    }

    #[test]
    fn a_daemon_that_talks_nonsense_costs_only_its_own_text() {
        let page = Page::zeroed();
        let mut ring = Ring::new(&page);
        ring.put(b"text");
        page.store(CONSUMED, 0x8000_0000);
        page.store(PRODUCED, 17);
        ring.put(b"more");
        page.store(CONSUMED, 4);
        ring.put(b"again");
        page.store(CONSUMED, 4);
        assert_eq!(read(&page), "[4 bytes lost]\r\nagain");
    }
}
