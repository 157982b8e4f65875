//! Xen's clock: system time as a line through the time-stamp counter (`struct vcpu_time_info` of `xen.h`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicI8, AtomicU32, AtomicU64, Ordering, fence};

use xen_sys::xen::vcpu_time_info;

/// The clock of one vCPU, written by Xen at any moment.
#[repr(C)]
#[derive(Default)]
pub struct Time {
    version: AtomicU32,
    pad: u32,
    tsc: AtomicU64,
    system: AtomicU64,
    scale: AtomicU32,
    shift: AtomicI8,
    rest: [u8; 3],
}

const _: () = {
    assert!(offset_of!(Time, tsc) == offset_of!(vcpu_time_info, tsc_timestamp));
    assert!(offset_of!(Time, system) == offset_of!(vcpu_time_info, system_time));
    assert!(offset_of!(Time, scale) == offset_of!(vcpu_time_info, tsc_to_system_mul));
    assert!(offset_of!(Time, shift) == offset_of!(vcpu_time_info, tsc_shift));
    assert!(size_of::<Time>() == size_of::<vcpu_time_info>());
};

impl Time {
    /// Nanoseconds of system time; `counter` reads the time-stamp counter.
    pub fn now(&self, counter: impl Fn() -> u64) -> u64 {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let tsc = self.tsc.load(Ordering::Relaxed);
            let system = self.system.load(Ordering::Relaxed);
            let scale = self.scale.load(Ordering::Relaxed);
            let shift = self.shift.load(Ordering::Relaxed);
            let ticks = since(tsc, counter());
            fence(Ordering::Acquire);
            if version & 1 == 0 && self.version.load(Ordering::Relaxed) == version {
                return system.wrapping_add(nanoseconds(ticks, scale, shift));
            }
            core::hint::spin_loop();
        }
    }

    /// Nanoseconds that so many ticks take.
    pub fn span(&self, ticks: u64) -> u64 {
        nanoseconds(ticks, self.scale.load(Ordering::Relaxed), self.shift.load(Ordering::Relaxed))
    }
}

/// Ticks from `stamp` to `counter`. A stamp from before the domain's own counter began is "negative" and wraps; a
/// counter that is behind the stamp, as another processor's may be by a little, counts as none.
fn since(stamp: u64, counter: u64) -> u64 {
    let ticks = counter.wrapping_sub(stamp);
    if ticks > u64::MAX / 2 { 0 } else { ticks }
}

/// `((ticks << shift) * scale) >> 32`, or shifted to the right when `shift` is negative.
fn nanoseconds(ticks: u64, scale: u32, shift: i8) -> u64 {
    let distance = u32::from(shift.unsigned_abs());
    let shifted = if shift < 0 { ticks.checked_shr(distance) } else { ticks.checked_shl(distance) };
    ((u128::from(shifted.unwrap_or(0)) * u128::from(scale)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn the_formula_is_that_of_the_header() {
        assert_eq!(nanoseconds(0, u32::MAX, 31), 0);
        // 2 GHz: half a nanosecond per tick.
        assert_eq!(nanoseconds(2_000_000_000, 1 << 31, 0), 1_000_000_000);
        // 3 GHz as Xen writes it: 2^32 * 2/3 after one shift to the right.
        assert_eq!(nanoseconds(3_000_000_000, 2_863_311_530, -1), 999_999_999);
        // 500 MHz: two nanoseconds per tick.
        assert_eq!(nanoseconds(7, 1 << 31, 2), 14);
        // A century of ticks does not overflow on the way.
        assert_eq!(nanoseconds(1 << 63, 1 << 31, 0), 1 << 62);
        assert_eq!(nanoseconds(5, 1 << 31, -64), 0);
    }

    #[test]
    fn a_counter_behind_the_stamp_gives_the_stamp() {
        let time = Time { tsc: 100.into(), system: 7.into(), scale: (1 << 31).into(), ..Time::default() };
        assert_eq!(time.now(|| 90), 7);
        assert_eq!(time.now(|| 120), 17);
    }

    #[test]
    fn a_stamp_from_before_the_counter_began_wraps() {
        // Xen stamps once a second; a domain's counter starts at 0 when it is built, in between.
        let time = Time { tsc: 0u64.wrapping_sub(50).into(), scale: (1 << 31).into(), ..Time::default() };
        assert_eq!(time.now(|| 0), 25);
        assert_eq!(time.now(|| 50), 50);
    }

    #[test]
    fn a_reading_never_mixes_two_versions() {
        let time = Arc::new(Time { scale: (1 << 31).into(), shift: 1.into(), ..Time::default() });
        let end = Arc::new(AtomicBool::new(false));
        let writer = {
            let (time, end) = (time.clone(), end.clone());
            std::thread::spawn(move || {
                for stamp in 1.. {
                    time.version.fetch_add(1, Ordering::SeqCst);
                    time.tsc.store(stamp * 1000, Ordering::SeqCst);
                    time.system.store(stamp * 1000, Ordering::SeqCst);
                    time.version.fetch_add(1, Ordering::SeqCst);
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        };
        // One nanosecond per tick and stamps on the line: every consistent reading is on the line too.
        for _ in 0..100_000 {
            assert_eq!(time.now(|| u64::MAX >> 1), u64::MAX >> 1);
        }
        end.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    }
}
