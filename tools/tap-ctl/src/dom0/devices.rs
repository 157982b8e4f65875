//! dom0's doors to Xen: `/dev/xen/gntdev` and `/dev/xen/evtchn`.
//!
//! The only `unsafe` of the tools is here: the kernel's ioctls, which take the address of a structure, and pages of
//! another domain in our address space. Layouts and numbers are those of `xen/gntdev.h` and `xen/evtchn.h`; the numbers
//! carry a size and no direction, which no macro of the kernel's headers is for.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::ioctl::{self, Direction, IoctlOutput, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use xen::page::{PAGE_BYTES, Page};

use super::stream::Bell;
use crate::failure::Failure;

/// The most grants of one mapping: those of a vchan's larger ring.
pub const GRANTS_MAX: usize = 256;

/// `struct ioctl_gntdev_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GrantRef {
    domid: u32,
    gref: u32,
}

/// `struct ioctl_gntdev_map_grant_ref`; the header has room for one reference and means as many as `count` says.
#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    index: u64,
    refs: [GrantRef; GRANTS_MAX],
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
struct UnmapGrantRef {
    index: u64,
    count: u32,
    pad: u32,
}

/// `struct ioctl_gntdev_unmap_notify`.
#[repr(C)]
struct UnmapNotify {
    index: u64,
    action: u32,
    port: u32,
}

const UNMAP_NOTIFY_CLEAR_BYTE: u32 = 1;
const UNMAP_NOTIFY_SEND_EVENT: u32 = 2;

/// `struct ioctl_evtchn_bind_interdomain`.
#[repr(C)]
struct BindInterdomain {
    domain: u32,
    port: u32,
}

/// `struct ioctl_evtchn_unbind` and `struct ioctl_evtchn_notify`.
#[repr(C)]
struct OnePort {
    port: u32,
}

const fn gntdev(number: u8, bytes: usize) -> Opcode {
    opcode::from_components(Direction::None, b'G', number, bytes)
}

const fn evtchn(number: u8, bytes: usize) -> Opcode {
    opcode::from_components(Direction::None, b'E', number, bytes)
}

const MAP_GRANT_REF: Opcode = gntdev(0, 24);
const UNMAP_GRANT_REF: Opcode = gntdev(1, size_of::<UnmapGrantRef>());
const SET_UNMAP_NOTIFY: Opcode = gntdev(7, size_of::<UnmapNotify>());
const BIND_INTERDOMAIN: Opcode = evtchn(1, size_of::<BindInterdomain>());
const UNBIND: Opcode = evtchn(3, size_of::<OnePort>());
const NOTIFY: Opcode = evtchn(4, size_of::<OnePort>());

/// A call with a structure that the kernel reads and writes.
struct Call<'a, T> {
    opcode: Opcode,
    argument: &'a mut T,
}

// SAFETY: the pointer is that of a live, exclusively borrowed structure, and the output is the call's plain number.
unsafe impl<T> ioctl::Ioctl for Call<'_, T> {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.argument).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

fn call<T>(file: &File, opcode: Opcode, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: every opcode of this file is used with the structure that the kernel's header gives it, whole and at
    // least as long as the kernel reads and writes.
    unsafe { ioctl::ioctl(file, Call { opcode, argument }) }
}

fn open(path: &str) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(Path::new(path));
    opened.map_err(|why| Failure::from(why).while_doing(format!("opening {path}")))
}

/// The door to other domains' pages.
#[derive(Clone)]
pub struct Grants(Rc<File>);

impl Grants {
    /// Opens it.
    pub fn open() -> Result<Grants, Failure> {
        open("/dev/xen/gntdev").map(|file| Grants(Rc::new(file)))
    }

    /// Maps pages that a domain has granted to us, in this order.
    pub fn map(&self, domain: u16, grefs: &[u32], writable: bool) -> Result<Mapping, Errno> {
        let mut argument = MapGrantRef {
            count: u32::try_from(grefs.len()).map_err(|_| Errno::INVAL)?,
            pad: 0,
            index: 0,
            refs: [GrantRef::default(); GRANTS_MAX],
        };
        let refs = argument.refs.get_mut(..grefs.len()).filter(|refs| !refs.is_empty()).ok_or(Errno::INVAL)?;
        let domid = domain.into();
        for (to, gref) in refs.iter_mut().zip(grefs) {
            *to = GrantRef { domid, gref: *gref };
        }
        call(&self.0, MAP_GRANT_REF, &mut argument)?;
        let mut mapping =
            Mapping { file: Rc::clone(&self.0), index: argument.index, pages: grefs.len(), address: None };
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let address =
            unsafe { mmap(ptr::null_mut(), mapping.bytes(), access, MapFlags::SHARED, &*self.0, mapping.index)? };
        mapping.address = NonNull::new(address.cast());
        Ok(mapping)
    }
}

/// Pages of another domain, until this is dropped.
pub struct Mapping {
    file: Rc<File>,
    /// The kernel's name for it: an offset in the device.
    index: u64,
    pages: usize,
    address: Option<NonNull<Page>>,
}

impl Mapping {
    fn bytes(&self) -> usize {
        self.pages * PAGE_BYTES
    }

    /// The pages. Those of a mapping that is not writable must not be written: the process would be killed.
    pub fn pages(&self) -> &[Page] {
        match self.address {
            // SAFETY: so many pages are mapped there until `self` is dropped. They are the other domain's to write, and
            // a `Page` is exactly that: bytes that are only reached by atomics and by copies that assume nothing.
            Some(address) => unsafe { std::slice::from_raw_parts(address.as_ptr(), self.pages) },
            None => &[],
        }
    }

    /// When the mapping ends, however that may be, this byte of it is cleared and the port is notified.
    pub fn clear_at_end(&self, at: u64, port: u32) -> Result<(), Errno> {
        let action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT;
        let mut argument = UnmapNotify { index: self.index + at, action, port };
        call(&self.file, SET_UNMAP_NOTIFY, &mut argument).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            // SAFETY: mapped by `Grants::map`, and no reference into it outlives `self`.
            let _ = unsafe { munmap(address.as_ptr().cast(), self.bytes()) };
        }
        let mut argument = UnmapGrantRef { index: self.index, count: self.pages as u32, pad: 0 };
        // The device's end would do it too; nothing can be done about a refusal here.
        let _ = call(&self.file, UNMAP_GRANT_REF, &mut argument);
    }
}

/// An event channel to another domain, and the door that it came through.
pub struct Events {
    file: File,
    port: u32,
}

impl Events {
    /// Binds to a port that the domain keeps for us. `EINVAL`: it keeps none, or somebody of ours is bound to it.
    pub fn bind(domain: u16, port: u32) -> Result<Events, Failure> {
        let file = open("/dev/xen/evtchn")?;
        let mut argument = BindInterdomain { domain: domain.into(), port };
        let port = call(&file, BIND_INTERDOMAIN, &mut argument)?;
        Ok(Events { file, port: u32::try_from(port).map_err(|_| Errno::IO)? })
    }

    /// Our own port.
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl Bell for Events {
    fn notify(&self) -> Result<(), Errno> {
        call(&self.file, NOTIFY, &mut OnePort { port: self.port }).map(drop)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn take(&self) -> Result<(), Errno> {
        let mut ports = [0; 4];
        let read = rustix::io::read(&self.file, &mut ports)?;
        // What is read are the ports, 32 bits each; written back they may fire again.
        rustix::io::write(&self.file, &ports[..read]).map(drop)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = call(&self.file, UNBIND, &mut OnePort { port: self.port });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by a C program from the kernel's `xen/gntdev.h` and `xen/evtchn.h`.
    #[test]
    fn numbers_of_the_headers() {
        let numbers = [
            (MAP_GRANT_REF, 0x0018_4700u32),
            (UNMAP_GRANT_REF, 0x0010_4701),
            (SET_UNMAP_NOTIFY, 0x0010_4707),
            (BIND_INTERDOMAIN, 0x0008_4501),
            (UNBIND, 0x0004_4503),
            (NOTIFY, 0x0004_4504),
        ];
        for (opcode, number) in numbers {
            assert_eq!(opcode, number as Opcode);
        }
        assert_eq!(std::mem::offset_of!(MapGrantRef, refs), 16);
        assert_eq!(size_of::<MapGrantRef>(), 16 + 8 * GRANTS_MAX);
    }

    #[test]
    fn a_host_without_xen_says_so() {
        if Path::new("/dev/xen/gntdev").exists() {
            return;
        }
        let why = Grants::open().err().unwrap();
        assert_eq!(why.to_string(), "opening /dev/xen/gntdev: No such file or directory");
    }
}
