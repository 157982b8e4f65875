//! `io/console.h`

/// The page shared with the console daemon. Indices run freely; they are masked on use.
#[repr(C)]
pub struct xencons_interface {
    /// What was typed.
    pub r#in: [u8; 1024],
    /// What we say.
    pub out: [u8; 2048],
    /// Ours.
    pub in_cons: u32,
    /// The daemon's.
    pub in_prod: u32,
    /// The daemon's.
    pub out_cons: u32,
    /// Ours.
    pub out_prod: u32,
}
