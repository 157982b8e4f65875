//! Names of the store nodes of a block device (`io/blkif.h`), relative to the backend's or the frontend's directory.

// Backend, written by the toolstack.

/// The frontend's directory, an absolute path.
pub const FRONTEND: &str = "frontend";
/// The frontend's domain id.
pub const FRONTEND_ID: &str = "frontend-id";
/// 1 as long as the device shall outlive a close.
pub const ONLINE: &str = "online";
/// What the disk is: our `TYPE:SOURCE`.
pub const PARAMS: &str = "params";
/// `r` or `w`.
pub const MODE: &str = "mode";
/// The backend's kind as the toolstack names it.
pub const TYPE: &str = "type";
/// The guest's name of the disk.
pub const DEV: &str = "dev";
/// `disk` or `cdrom`; in both directories.
pub const DEVICE_TYPE: &str = "device-type";
/// 0 forbids to offer discard; 1 if absent.
pub const DISCARD_ENABLE: &str = "discard-enable";
/// 1 if the guest may see the medium change.
pub const REMOVABLE: &str = "removable";

// Both directories.

/// A [`State`](crate::xenbus::State).
pub const STATE: &str = "state";
/// 1 if grants stay mapped or are used again; 0 if absent.
pub const FEATURE_PERSISTENT: &str = "feature-persistent";

// Backend, written before InitWait.

/// The largest ring, as a power of two of pages; 0 if absent.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// The most rings of one device; 1 if absent.
pub const MULTI_QUEUE_MAX_QUEUES: &str = "multi-queue-max-queues";
/// The most segments of an indirect request; absent if there are none.
pub const FEATURE_MAX_INDIRECT_SEGMENTS: &str = "feature-max-indirect-segments";

// Backend, written before Connected.

/// 1 if WRITE_BARRIER is done; 0 if absent.
pub const FEATURE_BARRIER: &str = "feature-barrier";
/// 1 if FLUSH_DISKCACHE is done; 0 if absent.
pub const FEATURE_FLUSH_CACHE: &str = "feature-flush-cache";
/// 1 if DISCARD is done; 0 if absent.
pub const FEATURE_DISCARD: &str = "feature-discard";
/// Bytes that are discarded at once; give it together with the alignment.
pub const DISCARD_GRANULARITY: &str = "discard-granularity";
/// Bytes to the first extent that can be discarded; 0 if absent.
pub const DISCARD_ALIGNMENT: &str = "discard-alignment";
/// 1 if a secure discard is done; 0 if absent.
pub const DISCARD_SECURE: &str = "discard-secure";
/// The disk's size in sectors of 512 bytes.
pub const SECTORS: &str = "sectors";
/// Bytes to which requests are aligned.
pub const SECTOR_SIZE: &str = "sector-size";
/// Bytes of a block of the medium; as sector-size if absent.
pub const PHYSICAL_SECTOR_SIZE: &str = "physical-sector-size";
/// Bits of [`INFO_READONLY`](super::INFO_READONLY) and its kin.
pub const INFO: &str = "info";
/// XAPI waits for it.
pub const HOTPLUG_STATUS: &str = "hotplug-status";
/// XAPI reads it when the wait is in vain.
pub const HOTPLUG_ERROR: &str = "hotplug-error";

// Frontend, written by the toolstack.

/// The backend's directory, an absolute path.
pub const BACKEND: &str = "backend";
/// The backend's domain id.
pub const BACKEND_ID: &str = "backend-id";
/// The number that names the disk in the guest.
pub const VIRTUAL_DEVICE: &str = "virtual-device";

// Frontend, written before Initialised.

/// The grant of a ring of one page; with more, [`ring_ref`].
pub const RING_REF: &str = "ring-ref";
/// The ring's size, as a power of two of pages; 0 if absent.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// The same in pages, deprecated; 1 if absent.
pub const NUM_RING_PAGES: &str = "num-ring-pages";
/// The port for the backend to bind.
pub const EVENT_CHANNEL: &str = "event-channel";
/// The [`Layout`](super::Layout) of the requests.
pub const PROTOCOL: &str = "protocol";
/// What we write into [`PROTOCOL`] as a frontend.
pub const PROTOCOL_X86_64: &str = "x86_64-abi";
/// How many rings; 1 if absent. From 2 on they have directories `queue-N`.
pub const MULTI_QUEUE_NUM_QUEUES: &str = "multi-queue-num-queues";

/// The name of the node with the grant of page `page` of a ring of several: `ring-ref0`, `ring-ref1` and so on.
pub fn ring_ref(page: u16) -> heapless::String<16> {
    let mut name = heapless::String::new();
    // "ring-ref" and five digits fit.
    let _ = core::fmt::write(&mut name, format_args!("{RING_REF}{page}"));
    name
}

#[cfg(test)]
mod tests {
    #[test]
    fn ring_refs() {
        assert_eq!(super::ring_ref(0).as_str(), "ring-ref0");
        assert_eq!(super::ring_ref(65535).as_str(), "ring-ref65535");
    }
}
