//! Schedule points: the moments at which a peer on another processor may have run.
//!
//! On real hardware that is every moment. A simulator on one thread needs to be told: with the feature `schedule`, which
//! only it switches on, every access to a page calls a hook before it touches the bytes, and a bulk copy once more in its
//! middle. Without the feature nothing of this is compiled.

/// Whether accesses call a hook.
pub const ON: bool = cfg!(feature = "schedule");

#[cfg(feature = "schedule")]
static HOOK: spin::Once<fn()> = spin::Once::new();

/// Installs the hook, once for the whole process; later calls change nothing.
#[cfg(feature = "schedule")]
pub fn install(hook: fn()) {
    HOOK.call_once(|| hook);
}

/// Peers may run now.
#[inline(always)]
pub(crate) fn point() {
    #[cfg(feature = "schedule")]
    if let Some(hook) = HOOK.get() {
        hook();
    }
}

/// After how many of so many bytes of a bulk copy peers may run again; 0 is not at all.
#[inline(always)]
pub(crate) const fn cut(bytes: usize) -> usize {
    if ON { bytes / 2 } else { 0 }
}
