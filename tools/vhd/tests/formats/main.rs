//! Images between this program's engine and programs that share no code with it: QEMU (qemu-img, qemu-io) and libvhdi.
//! Debian's qemu-utils and python3-libvhdi have to be installed; `make setup` does that. blktap's vhd-util is asked where
//! there is one.

mod blktap;
mod commands;
mod damage;
mod judges;
mod libvhdi;
mod qemu;
mod under;
