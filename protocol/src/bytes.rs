//! Numbers out of bytes, where the caller has checked that they are there: structures of a fixed size.

/// `N` bytes from `at` on.
pub fn bytes_at<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

/// Little-endian, as GPT and LVM2 have them.
pub mod little {
    use super::bytes_at;

    /// 32 bits.
    pub fn u32_at(from: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes_at(from, at))
    }

    /// 64 bits.
    pub fn u64_at(from: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes_at(from, at))
    }
}

/// Big-endian, as VHD has them.
pub mod big {
    use super::bytes_at;

    /// 16 bits.
    pub fn u16_at(from: &[u8], at: usize) -> u16 {
        u16::from_be_bytes(bytes_at(from, at))
    }

    /// 32 bits.
    pub fn u32_at(from: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes_at(from, at))
    }

    /// 64 bits.
    pub fn u64_at(from: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(bytes_at(from, at))
    }
}
