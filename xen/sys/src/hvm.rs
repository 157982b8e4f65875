//! `hvm/hvm_op.h` and `hvm/params.h`.

use crate::xen::domid_t;

/// Sets a parameter; a [`xen_hvm_param`].
pub const HVMOP_set_param: u64 = 0;
/// Reads a parameter; a [`xen_hvm_param`].
pub const HVMOP_get_param: u64 = 1;

/// How events reach the processor: type in the top byte, and for a vector its number in the lowest.
pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
/// Type of `HVM_PARAM_CALLBACK_IRQ`: a vector, needing no interrupt controller.
pub const HVM_PARAM_CALLBACK_TYPE_VECTOR: u64 = 2;
/// Frame of the page shared with xenstored.
pub const HVM_PARAM_STORE_PFN: u32 = 1;
/// Port of it.
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
/// Frame of the console ring.
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
/// Port of it.
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;

/// Argument of `HVMOP_set_param` and `HVMOP_get_param`.
#[repr(C)]
pub struct xen_hvm_param {
    /// Whose.
    pub domid: domid_t,
    /// Unused.
    pub pad: u16,
    /// `HVM_PARAM_*`
    pub index: u32,
    /// In or out.
    pub value: u64,
}
