//! Schedule points: the moments at which a peer on another processor may have run.
//!
//! On real hardware that is every moment. A simulator on one thread needs to be told: with the feature `schedule`, which
//! only it switches on, every access to a page calls a hook before it touches the bytes, and a bulk copy once more in its
//! middle. Without the feature nothing of this is compiled.

/// Whether accesses call a hook.
pub const ON: bool = cfg!(feature = "schedule");

/// What a task is called, where somebody wants to know: the type of its future.
#[derive(Clone, Copy)]
pub(crate) struct Name(#[cfg(feature = "schedule")] &'static str);

#[cfg(feature = "schedule")]
struct Hooks {
    point: fn(),
    task: fn(usize, &'static str),
}

#[cfg(feature = "schedule")]
static HOOKS: spin::Once<Hooks> = spin::Once::new();

/// Installs the hooks, once for the whole process; later calls change nothing. `task` is called before a task is polled, with
/// its number.
#[cfg(feature = "schedule")]
pub fn install(point: fn(), task: fn(usize, &'static str)) {
    HOOKS.call_once(|| Hooks { point, task });
}

impl Name {
    /// The name of a task.
    pub fn of<F>(_future: &F) -> Self {
        #[cfg(feature = "schedule")]
        return Name(core::any::type_name::<F>());
        #[cfg(not(feature = "schedule"))]
        Name()
    }
}

/// A task is about to be polled.
#[inline(always)]
pub(crate) fn polls(_task: usize, _name: Name) {
    #[cfg(feature = "schedule")]
    if let Some(hooks) = HOOKS.get() {
        (hooks.task)(_task, _name.0);
    }
}

/// Peers may run now.
#[inline(always)]
pub(crate) fn point() {
    #[cfg(feature = "schedule")]
    if let Some(hooks) = HOOKS.get() {
        (hooks.point)();
    }
}

/// After how many of so many bytes of a bulk copy peers may run again; 0 is not at all.
#[inline(always)]
pub(crate) const fn cut(bytes: usize) -> usize {
    if ON { bytes / 2 } else { 0 }
}
