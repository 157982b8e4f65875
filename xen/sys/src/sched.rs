//! `sched.h`

/// Ends the domain; a [`sched_shutdown`].
pub const SCHEDOP_shutdown: u64 = 2;

/// The domain ended as it should.
pub const SHUTDOWN_poweroff: u32 = 0;
/// ... and is to be started again.
pub const SHUTDOWN_reboot: u32 = 1;
/// The domain broke.
pub const SHUTDOWN_crash: u32 = 3;

/// Argument of `SCHEDOP_shutdown`.
#[repr(C)]
pub struct sched_shutdown {
    /// `SHUTDOWN_*`
    pub reason: u32,
}
