//! The heap: all RAM that nothing else uses. An allocation that fails ends in an epitaph.

use core::ops::Range;

use talc::TalcLock;
use talc::source::Manual;

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// Gives memory to the heap.
///
/// # Safety
/// The range is mapped, writable and used by nobody, for ever.
pub unsafe fn give(range: Range<u64>) {
    let bytes = (range.end - range.start) as usize;
    // SAFETY: the caller's.
    unsafe { HEAP.lock().claim(range.start as *mut u8, bytes) };
}

/// Bytes in use, and bytes there are.
pub fn memory() -> (usize, usize) {
    let heap = HEAP.lock();
    let counters = heap.counters();
    (counters.claimed_bytes - counters.available_bytes, counters.claimed_bytes)
}
