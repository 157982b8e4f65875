//! The bits of OPEN and RESUME (`TAPDISK_MESSAGE_FLAG_*`).

use core::ops::BitOr;

use super::Dialect;

/// `params.flags`. Bits that nobody knows stay visible, so that a server can refuse them by name and never ignores
/// one in silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// None.
    pub const NONE: Flags = Flags(0);
    /// Other VBDs may use the same image.
    pub const SHARED: Flags = Flags(0x001);
    /// Nobody may write.
    pub const RDONLY: Flags = Flags(0x002);
    /// A read cache above the shared read-only image.
    pub const ADD_CACHE: Flags = Flags(0x004);
    /// A precomputed index of a read-only VHD chain.
    pub const VHD_INDEX: Flags = Flags(0x008);
    /// The RFC's word for bit 0x010: note which blocks change.
    pub const LOG_DIRTY: Flags = Flags(0x010);
    /// blktap's word for the same bit. There the path of the log follows the message.
    pub const ADD_LOG: Flags = Flags(0x010);
    /// What is read from the parent is kept in the leaf.
    pub const ADD_LCACHE: Flags = Flags(0x020);
    /// The parent is what another VBD serves: `prt_devnum` says which.
    pub const REUSE_PRT: Flags = Flags(0x040);
    /// A second image beside the first: `secondary` names it.
    pub const SECONDARY: Flags = Flags(0x080);
    /// With SECONDARY: it takes over when the first is full, and mirrors nothing until then.
    pub const STANDBY: Flags = Flags(0x100);
    /// blktap only: through the host's page cache.
    pub const NO_O_DIRECT: Flags = Flags(0x200);
    /// blktap only: a key follows the message.
    pub const OPEN_ENCRYPTED: Flags = Flags(0x400);

    /// The flags of a message's field.
    pub const fn of_bits(bits: u32) -> Flags {
        Flags(bits)
    }

    /// The field.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `others` are set.
    pub const fn contains(self, others: Flags) -> bool {
        self.0 & others.0 == others.0
    }

    /// These without `others`: what is left when a server has taken out all that it can do.
    pub const fn without(self, others: Flags) -> Flags {
        Flags(self.0 & !others.0)
    }

    /// Whether none is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each set bit by itself, the lowest first.
    pub fn each(self) -> impl Iterator<Item = Flags> {
        (0..u32::BITS).map(|bit| Flags(1 << bit)).filter(move |bit| self.contains(*bit))
    }

    /// A single bit's name in its dialect; `None` for more bits, for none, and for one that the dialect does not have.
    pub const fn name(self, dialect: Dialect) -> Option<&'static str> {
        match (self, dialect) {
            (Flags::SHARED, _) => Some("SHARED"),
            (Flags::RDONLY, _) => Some("RDONLY"),
            (Flags::ADD_CACHE, _) => Some("ADD_CACHE"),
            (Flags::VHD_INDEX, _) => Some("VHD_INDEX"),
            (Flags::LOG_DIRTY, Dialect::Rfc) => Some("LOG_DIRTY"),
            (Flags::ADD_LOG, Dialect::Blktap) => Some("ADD_LOG"),
            (Flags::ADD_LCACHE, _) => Some("ADD_LCACHE"),
            (Flags::REUSE_PRT, _) => Some("REUSE_PRT"),
            (Flags::SECONDARY, _) => Some("SECONDARY"),
            (Flags::STANDBY, _) => Some("STANDBY"),
            (Flags::NO_O_DIRECT, Dialect::Blktap) => Some("NO_O_DIRECT"),
            (Flags::OPEN_ENCRYPTED, Dialect::Blktap) => Some("OPEN_ENCRYPTED"),
            _ => None,
        }
    }

    /// The bits for which the dialect has no name.
    pub fn unknown(self, dialect: Dialect) -> Flags {
        self.each().filter(|bit| bit.name(dialect).is_none()).fold(Flags::NONE, BitOr::bitor)
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn what_is_wished_twice_is_wished() {
        let both = Flags::SHARED | Flags::RDONLY;
        assert!((both | Flags::RDONLY) == both && both.contains(Flags::SHARED) && both.contains(Flags::RDONLY));
    }

    #[test]
    fn every_bit_has_its_name_or_none() {
        // From the two headers.
        let rfc = [
            "SHARED",
            "RDONLY",
            "ADD_CACHE",
            "VHD_INDEX",
            "LOG_DIRTY",
            "ADD_LCACHE",
            "REUSE_PRT",
            "SECONDARY",
            "STANDBY",
        ];
        let blktap = [
            "SHARED",
            "RDONLY",
            "ADD_CACHE",
            "VHD_INDEX",
            "ADD_LOG",
            "ADD_LCACHE",
            "REUSE_PRT",
            "SECONDARY",
            "STANDBY",
            "NO_O_DIRECT",
            "OPEN_ENCRYPTED",
        ];
        for (dialect, names) in [(Dialect::Rfc, rfc.as_slice()), (Dialect::Blktap, &blktap)] {
            for bit in 0..32 {
                assert_eq!(Flags::of_bits(1 << bit).name(dialect), names.get(bit).copied());
            }
            assert_eq!((Flags::NONE.name(dialect), Flags::of_bits(3).name(dialect)), (None, None));
            let known = (1 << names.len()) - 1;
            assert_eq!(Flags::of_bits(u32::MAX).unknown(dialect).bits(), !known);
            assert!(Flags::of_bits(known).unknown(dialect).is_empty());
        }
    }

    #[test]
    fn sets() {
        let flags = Flags::RDONLY | Flags::SECONDARY | Flags::of_bits(1 << 31);
        assert_eq!(flags.bits(), 0x8000_0082);
        assert_eq!(flags.each().map(Flags::bits).collect::<Vec<_>>(), [2, 0x80, 1 << 31]);
        assert!(flags.contains(Flags::RDONLY) && flags.contains(Flags::NONE) && !flags.contains(Flags::SHARED));
        assert!(!flags.contains(Flags::SHARED | Flags::RDONLY));
        assert_eq!(flags.without(Flags::RDONLY | Flags::SHARED).bits(), 0x8000_0080);
        assert_eq!((Flags::RDONLY | Flags::RDONLY), Flags::RDONLY);
        assert!(Flags::default().is_empty() && !flags.is_empty());
    }
}
