//! The image: from the domain builder to `kernel::run`. See the library for its layout; here is what needs `unsafe`.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

mod clock;
mod console;
mod entry;
mod epitaph;
mod events;
mod grants;
mod heap;
mod hypercall;
mod idt;
mod machine;
mod mates;
mod paging;
mod window;

use alloc::boxed::Box;
use alloc::string::String;
use boot::map::PAGE;
use boot::shared::Shared;
use kernel::control::Channel;
use kernel::crew::Crew;
use xen::page::Page;
use xen::port::Port;
use xen_sys::hvm::{HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN};
use xen_sys::memory::XENMAPSPACE_shared_info;

use crate::machine::Machine;

#[cfg(target_os = "none")]
const _: () = assert!(!xen::schedule::ON, "the image was built with the simulator's schedule points");

/// Called once, by `entry`, on the main stack.
extern "C" fn start(start_info: u64) -> ! {
    let began = clock::counter();
    idt::load(0);
    let found = hypercall::find();
    let parameter = |index| hypercall::parameter(index).expect("a PVH domain has a console and a store");
    let (console, store) = (parameter(HVM_PARAM_CONSOLE_PFN), parameter(HVM_PARAM_STORE_PFN));
    let console_port = Port(parameter(HVM_PARAM_CONSOLE_EVTCHN) as u32);
    let store_port = Port(parameter(HVM_PARAM_STORE_EVTCHN) as u32);

    // SAFETY: this is the value of ebx, and nothing has been written since but the image's own data.
    let start = unsafe { entry::Start::read(start_info) };
    let vcpus = mates::count();
    // SAFETY: the first tables are in use, and what start_info pointed to has been copied.
    let space = unsafe { paging::enter(&start.map, &[console, store], vcpus) };
    // SAFETY: `free` leaves out what is used: the image with the stacks, and the tables.
    space.free(&start.map, &mut |range| unsafe { heap::give(range) });

    // SAFETY: the frames are pages the builder made for this, and `enter` has mapped them.
    let [console, store] = [console, store].map(|frame| unsafe { &*((frame * PAGE) as *const Page) });
    console::open(console, console_port);

    let shared = space.shared.start;
    // SAFETY: a hole that `enter` keeps for this.
    unsafe { paging::place(XENMAPSPACE_shared_info, 0, shared) }.expect("Xen gives every domain a shared page");
    // SAFETY: the page is there now, and `Shared` has its layout.
    let shared: &'static Shared = unsafe { &*(shared as *const Shared) };
    clock::open(&shared.vcpus[0].time, began);

    let command_line = alloc::string::String::from_utf8_lossy(&start.command_line).into_owned().leak();
    let level = boot::options::level(command_line);
    console::log(level.unwrap_or(log::LevelFilter::Info));
    if let Err(word) = level {
        log::warn!("boot: loglevel={word} is not error, warn, info, debug or trace");
    }

    let table = space.shared.start + PAGE;
    let room = ((space.shared.end - table) / PAGE) as u32;
    // SAFETY: these holes are kept for the table, those below for the window, and both are used only here.
    let grants = unsafe { grants::Grants::new(table, room) }.expect("every Xen has grant tables");
    // SAFETY: as above.
    let window = unsafe { window::Window::new(space.window.clone()) };
    let (grants, window): (&'static _, &'static _) = (Box::leak(Box::new(grants)), Box::leak(Box::new(window)));
    events::begin(shared, console_port).expect("every Xen has event channels");
    let machine = |vcpu: usize| {
        let given = (vcpu == 0).then_some(store_port);
        let events = events::Events::new(shared, vcpu, given, vcpus > 1).expect("every Xen has event channels");
        Machine { events, grants, window, store: (store, store_port) }
    };
    let domain = found.domain.map_or_else(|| "?".into(), |number| alloc::format!("{number}"));
    let (_, heap) = heap::memory();
    let (major, minor) = found.version;
    let several = if vcpus > 1 { alloc::format!(", {vcpus} vCPUs") } else { String::new() };
    log::info!("boot: domain {domain} on Xen {major}.{minor}, {} KiB of heap{several}", heap / 1024);
    log::debug!("boot: command line '{command_line}', window {:x?}", space.window);
    for region in start.map.regions() {
        log::debug!("boot: {} {:x?}", if region.ram { "RAM" } else { "reserved" }, region.at);
    }
    let channels = Channel::of_command_line(command_line).unwrap_or_else(|word| {
        log::warn!("boot: control={word} is not none, or blktap:, rfc: or events: with a path");
        Channel::defaults()
    });
    let crew = Crew::new(heap::memory, vcpus);
    let first = machine(0);
    for vcpu in 1..vcpus {
        mates::start(vcpu, machine(vcpu), crew.clone()).unwrap_or_else(|refused| panic!("vCPU {vcpu}: {refused:?}"));
    }
    kernel::run(first, &crew, channels)
}
