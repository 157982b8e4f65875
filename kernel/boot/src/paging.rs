//! Our address space: every page at its own physical address, code not writable, all else not executable, no page
//! where null points and none under a stack; above all RAM a place for pages that are not ours.

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::ops::Range;

use boot::map::{LARGE, Map, PAGE};
use boot::tables::{Access, Table, Tables};
use xen::limits::{KEPT_PAGES, RING_PAGES};
use xen::port::Refused;
use xen_sys::memory::{XENMEM_add_to_physmap, xen_add_to_physmap};
use xen_sys::xen::DOMID_SELF;

use crate::hypercall;

/// Pages of other domains that can be mapped at a time.
pub const WINDOW_PAGES: u64 = (RING_PAGES + KEPT_PAGES) as u64;

/// The first tables map this much; ours must lie in it.
const REACH: u64 = 1 << 30;

// Places the linker script names.
unsafe extern "C" {
    static image_start: u8;
    static text_start: u8;
    static text_end: u8;
    static image_end: u8;
    static main_bottom: u8;
    static main_top: u8;
    static fault_bottom: u8;
    static fault_top: u8;
    static double_bottom: u8;
    static double_top: u8;
}

/// Where the stacks of the vCPUs beside the first are, one set after the other.
static MATES: spin::Once<Range<u64>> = spin::Once::new();

/// Bytes of each stack of those, and of a set of them with a page under each. Those of the first vCPU are the image's.
const STACKS: [u64; 3] = [128 << 10, 16 << 10, 16 << 10];
const SET: u64 = STACKS[0] + STACKS[1] + STACKS[2] + 3 * PAGE;

/// How many vCPUs have stacks.
fn vcpus() -> usize {
    1 + MATES.get().map_or(0, |mates| ((mates.end - mates.start) / SET) as usize)
}

/// The three stacks of a vCPU: where it runs, where a fault is told, where a fault in that is told.
pub fn stacks(vcpu: usize) -> [Range<u64>; 3] {
    if let (1.., Some(mates)) = (vcpu, MATES.get()) {
        let mut at = mates.start + (vcpu as u64 - 1) * SET;
        return STACKS.map(|bytes| {
            let bottom = at + PAGE;
            at = bottom + bytes;
            bottom..at
        });
    }
    [
        &raw const main_bottom as u64..&raw const main_top as u64,
        &raw const fault_bottom as u64..&raw const fault_top as u64,
        &raw const double_bottom as u64..&raw const double_top as u64,
    ]
}

/// The unmapped pages under all stacks.
pub fn guards() -> impl Iterator<Item = Range<u64>> + Clone {
    (0..vcpus()).flat_map(|vcpu| stacks(vcpu).map(|stack| stack.start - PAGE..stack.start))
}

/// The vCPU on whose stacks this address is.
pub fn vcpu_at(address: u64) -> usize {
    let is_its = |vcpu: &usize| stacks(*vcpu).iter().any(|stack| stack.contains(&address));
    (0..vcpus()).find(is_its).unwrap_or(0)
}

/// Our code.
pub fn text() -> Range<u64> {
    &raw const text_start as u64..&raw const text_end as u64
}

/// What of RAM is ours from the begin: the null page, the image, and the stack that lies apart from it.
fn ours() -> [Range<u64>; 3] {
    let [main, ..] = stacks(0);
    let guard = main.start - PAGE..main.start;
    [0..PAGE, &raw const image_start as u64..&raw const image_end as u64, guard.start..main.end]
}

/// What lies where, once [`enter`] has run.
pub struct Space {
    /// Our own from the start: tables, and stacks.
    taken: Range<u64>,
    /// Holes for pages Xen shares with us: the shared page, the grant table.
    pub shared: Range<u64>,
    /// Holes for pages of other domains.
    pub window: Range<u64>,
}

/// Enters an address space of our own, with stacks for so many vCPUs. `special` are the frames of pages outside RAM that the builder made for us.
///
/// # Safety
/// The first tables are in use, `map` is the machine's, and no memory outside the image is in use, not even what
/// start_info pointed to.
pub unsafe fn enter(map: &Map, special: &[u64], vcpus: usize) -> Space {
    let bits = __cpuid(0x8000_0008).eax & 0xff;
    let holes = map.hole(LARGE + WINDOW_PAGES * PAGE, 1 << bits).expect("no room above RAM for pages of other domains");
    let shared = holes.start..holes.start + LARGE;
    let window = shared.end..holes.end;

    let mut ranges = heapless::Vec::<Range<u64>, 64>::new();
    let wanted = map.ram().chain([holes]).chain(special.iter().map(|frame| frame * PAGE..(frame + 1) * PAGE));
    wanted.for_each(|range| ranges.push(range).expect("too many regions"));
    let rodata = &raw const image_start as u64..text().start;
    let parts = [(0..PAGE, Access::Nothing), (rodata, Access::Read), (text(), Access::Execute)];
    let count = Tables::needed(&ranges, 3 + 3 * vcpus);
    let bytes = count as u64 * PAGE;
    let stacks = (vcpus as u64 - 1) * SET;
    let place = map.room(bytes + stacks, &ours(), REACH).expect("no room for page tables and stacks");
    MATES.call_once(|| place.start + bytes..place.end);
    let parts = parts.into_iter().chain(guards().map(|guard| (guard, Access::Nothing)));
    // SAFETY: the place is RAM that nothing else uses (caller), mapped by the first tables, and page-aligned.
    let pool = unsafe {
        core::ptr::write_bytes(place.start as *mut u8, 0, bytes as usize);
        core::slice::from_raw_parts_mut(place.start as *mut Table, count)
    };
    let mut tables = Tables::new(pool);
    ranges.into_iter().for_each(|range| tables.set(range, Access::Write));
    parts.for_each(|(range, access)| tables.set(range, access));

    // SAFETY: the new tables map the image, the stack and all we know of at the same addresses as before, with the
    // access each has by the linker script.
    unsafe { asm!("mov cr3, {}", in(reg) tables.root(), options(nostack, preserves_flags)) };
    Space { taken: place, shared, window }
}

impl Space {
    /// Calls `each` with every piece of RAM that is nobody's.
    pub fn free(&self, map: &Map, each: &mut dyn FnMut(Range<u64>)) {
        let [null, image, stack] = ours();
        map.free(&[null, image, stack, self.taken.clone()], each);
    }
}

/// Has Xen put a page of its own (`XENMAPSPACE_*` and index) at `address`.
///
/// # Safety
/// `address` must be a hole that is ours to fill.
pub unsafe fn place(space: u32, index: u64, address: u64) -> Result<(), Refused> {
    let mut argument = xen_add_to_physmap { domid: DOMID_SELF, size: 0, space, idx: index, gpfn: address / PAGE };
    // SAFETY: the operation takes this structure; a hole has nothing to lose.
    unsafe { hypercall::memory(XENMEM_add_to_physmap, &mut argument) }.map(|_| ())
}
