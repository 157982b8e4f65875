//! A vchan: two byte rings between two domains, as libxenvchan has them (`io/libxenvchan.h`).
//!
//! The server grants one page with all indices and flags; the rings lie in it or in pages of their own. *Left* is what
//! the client writes, *right* what the server writes.
//!
//! ```text
//! 0 left: cons, prod | 8 right: cons, prod | 16 orders | 20 live and notify flags, a byte each | 24 grants
//! ```
//!
//! Either side may write any of it at any moment. libxenvchan reads its own indices and the orders back from the page
//! (XSA-86 was one of what follows); here they are private and only ever published, and a peer's index is fetched once,
//! checked and then used (XSA-155).
//!
//! - `vchan/orders.rs`: sizes of the rings and where they lie
//! - `vchan/endpoint.rs`: one side of a vchan

mod endpoint;
mod orders;

pub use endpoint::{Endpoint, Moved, Peer, Rings};
pub use orders::{GRANTS_MAX, Malformed, Orders, Place};

/// Bytes of the page that holds the indices.
pub const PAGE_BYTES: usize = 4096;

/// The longest path at which clients find a server: libxenvchan has 64 bytes for `<path>/event-channel` with its NUL,
/// and reads another node than it means when they do not suffice.
pub const PATH_BYTES: usize = 49;

/// `/local/domain/65535/`, which comes before a path from a domain's home.
const HOME_BYTES: usize = 20;

/// Whether clients find a server at `path`, from the root or from the server's home, whatever the server's number is.
pub fn fits(path: &str) -> bool {
    let home = if path.starts_with('/') { 0 } else { HOME_BYTES };
    crate::xenstore::valid_path(path) && path != "/" && home + path.len() <= PATH_BYTES
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    #[test]
    fn paths_that_libxenvchan_can_hold() {
        // char buf[64] there, and snprintf(buf, 64, "%s/event-channel", path).
        assert_eq!(PATH_BYTES + "/event-channel".len() + 1, 64);
        assert_eq!(HOME_BYTES, "/local/domain/65535/".len());
        let long = |first: &str, bytes: usize| String::from(first) + &"a".repeat(bytes - first.len());
        assert!(fits(&long("/local/domain/1/data/", 49)) && !fits(&long("/local/domain/1/data/", 50)));
        assert!(fits(&long("data/", 29)) && !fits(&long("data/", 30)));
        assert!(fits("data/tapdisk") && fits("data/tapdisk-rfc"));
        for wrong in ["", "/", "data/", "data//x", "data/a b", "data/a\0"] {
            assert!(!fits(wrong), "{wrong:?}");
        }
    }
}
