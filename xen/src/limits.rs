//! Every maximum, in one place, with what ties them together.

/// Disks served at once.
pub const VBDS: usize = 512;
/// Requests of one disk in flight at once.
pub const REQUESTS_PER_VBD: usize = 128;
/// Requests taken from one ring, and rounds made over those in flight, before others get their turn.
pub const REQUESTS_PER_TURN: usize = 64;
/// Segments of one indirect request (`feature-max-indirect-segments`): 1 MiB.
pub const SEGMENTS_INDIRECT: u16 = 256;
/// Segments of one disk in flight at once: half of a lower disk's pages, and a bound on what its requests note down
/// (about 50 bytes a segment), whatever a guest asks for.
pub const SEGMENTS_PER_VBD: usize = 512;
/// Pages of a frontend that stay mapped, of one ring: Linux keeps 1,056 on a ring of one page. A power of two.
pub const KEPT_PER_RING: usize = 2048;
/// The same of all rings together. Rings have to be mapped too: this and [`RING_PAGES`] fit the image's window.
pub const KEPT_PAGES: usize = 16384;
/// Rings of one disk, each served by a vCPU of its own (`multi-queue-max-queues`).
pub const QUEUES: usize = 8;
/// Pages of all rings.
pub const RING_PAGES: usize = VBDS << RING_ORDER;
/// log2 of the most pages of a ring (`max-ring-page-order`).
pub const RING_ORDER: u32 = 4;
/// Pages lent to the backend of one lower disk, for all data in flight to it: 4 MiB.
pub const PAGES_PER_LOWER: usize = 1024;
/// Pages beside those, for what lies on a disk about its images: who holds data pages may wait for one of these.
pub const PAGES_RESERVED_PER_LOWER: usize = 32;
/// Requests in flight to one lower disk.
pub const REQUESTS_PER_LOWER: usize = 256;
/// How long a ring is looked at before we sleep, where pauses were short lately. Half of what Linux's guests and KVM look
/// before they halt (`halt_poll_ns`).
pub const LOOK_NANOS: u64 = 100_000;
/// Pauses slept through between two looks, after many in vain.
pub const LOOKS_APART: u16 = 64;
/// Copies in one GNTTABOP_copy.
pub const COPIES_PER_BATCH: usize = 2048;
/// Bytes of memory that nobody is promised: what all tasks together need for a moment.
pub const MEMORY_SPARE: usize = 2 << 20;
/// Bytes of memory that each ring may count on: one request of the largest kind, and what is kept while it is idle.
pub const MEMORY_PER_RING: usize = 64 << 10;
/// Bytes that the pages for a lower disk leave to rings, where fewer pages do: eight, each of which is promised its share
/// and soon uses about as much.
pub const MEMORY_FOR_RINGS: usize = 16 * MEMORY_PER_RING;
/// The same of each image with metadata: its caches at their full size.
pub const MEMORY_PER_IMAGE: usize = 1 << 20;
/// Times a copy or map is made again when Xen says GNTST_eagain.
pub const AGAIN_TRIES: usize = 16;
/// Xenstore requests waiting for their answers; C xenstored allows 20.
pub const STORE_OUTSTANDING: usize = 16;
/// Times a xenstore transaction is made again when another got in between.
pub const STORE_TRANSACTION_TRIES: usize = 32;
/// Changed paths kept for one watcher before they fold into the watched path itself (XSA-349).
pub const WATCH_PATHS: usize = 64;
/// Seconds between two looks whether the other end of a vchan is still there, and before a vchan is offered again that
/// could not be.
pub const VCHAN_LOOK_SECONDS: u64 = 3;
/// Pages of earlier vchans at one path that their clients still have mapped; beyond, no new client is let in.
pub const VCHAN_PAGES_STUCK: usize = 64;
/// Bytes of a `params` node we are willing to look at.
pub const TARGET_BYTES: usize = 1024;
/// Clients connected to one control channel at once.
pub const CONTROL_CLIENTS: usize = 8;
/// Seconds that a control client may leave half a request, or an answer unread.
pub const CONTROL_SECONDS: u64 = 10;
/// Failures of stores kept for those who fetch them.
pub const FAILURES_KEPT: usize = 64;
/// Entries of the trace an epitaph shows.
pub const TRACE_ENTRIES: usize = 64;

const _: () = {
    // A single request must be able to get all its pages, or it would wait for ever.
    assert!(PAGES_PER_LOWER >= SEGMENTS_INDIRECT as usize);
    assert!(SEGMENTS_PER_VBD >= SEGMENTS_INDIRECT as usize);
    assert!(SEGMENTS_PER_VBD <= PAGES_PER_LOWER / 2);
    assert!(KEPT_PER_RING.is_power_of_two() && KEPT_PER_RING <= KEPT_PAGES);
    assert!(REQUESTS_PER_TURN <= REQUESTS_PER_VBD);
    // One full indirect request with its descriptor page fits a batch.
    assert!(COPIES_PER_BATCH > SEGMENTS_INDIRECT as usize);
    assert!(STORE_OUTSTANDING < 20);
};
