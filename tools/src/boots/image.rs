//! Builds what a boot is made of: the initramfs of dom0, the small one of the guests, and the disk of tools.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::cpio::Archive;
use super::elf;
use super::parts::{Parts, modules_in_order, run};
use crate::agent::{exercise, footprint};
use crate::report::{JOB_PATH, Task};

/// Modules of dom0: access to Xen, both halves of its block driver, the disks that stand in for hardware.
const DOM0_MODULES: &[&str] = &[
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xenfs",
    "xen-blkback",
    "xen-blkfront",
    "loop",
    "brd",
    "dm-mod",
    "ext4",
    "crc32c_generic",
];

/// Modules of a guest. Ext4 asks for a checksum by name, so no `depends=` leads to crc32c_generic.
const GUEST_MODULES: &[&str] = &["xen-evtchn", "xenfs", "xen-blkfront", "ext4", "crc32c_generic"];

/// Programs of dom0, from the unpacked packages.
const DOM0_PROGRAMS: &[&str] = &[
    "usr/lib/xen-4.17/bin/xl",
    "usr/lib/xen-4.17/bin/xen-init-dom0",
    "usr/lib/xen-4.17/bin/xenstored",
    "usr/lib/xen-4.17/bin/xenconsoled",
    "usr/lib/xen-4.17/bin/xenconsole",
    "usr/lib/xen-4.17/bin/libxl-save-helper",
    "usr/lib/xen-4.17/bin/lsevtchn",
    "usr/lib/xen-4.17/bin/vchan-socket-proxy",
];

/// xenstore's programs are one file under several names.
const XENSTORE: &[&str] = &["read", "write", "list", "ls", "watch", "rm", "exists", "chmod"];

/// A client of the control channel that shares no code with us, and the names under which dom0 has it in each dialect.
const RAW_MESSAGES: &str = include_str!("raw_messages.c");
const RAW_PROGRAMS: [(&str, &[&str]); 2] =
    [("/usr/bin/raw-messages-blktap", &[]), ("/usr/bin/raw-messages-rfc", &["-DRFC"])];

/// A reader of chains of VHDs over libvhdi, and its name in dom0.
const READ_CHAIN: &str = include_str!("read_chain.c");
const READ_CHAIN_PROGRAM: &str = "/usr/bin/read-chain";

/// QEMU where Debian's libxl looks for it, and what it does not start without.
const QDISK: &str = "/usr/libexec/xen-qemu-system-i386";
const KEYMAP: &str = "/usr/share/qemu/keymaps/en-us";

/// The load of the benchmark, in the guest.
const LOAD: &str = include_str!("bench/load.c");

/// The clock of `make footprint`, in dom0.
const UNTIL: &str = include_str!("footprint/until.c");

/// What a boot is made of besides Debian's parts.
pub struct Ours<'a> {
    /// The agent's program, built beside this one.
    pub agent: &'a Path,
    /// The toolstack's program for the control channel, static, built beside this one.
    pub tap_ctl: &'a Path,
    /// The tool for VHD images.
    pub vhd: &'a Path,
    /// The domain under test, if this boot has one.
    pub domain: Option<&'a Path>,
    /// The folder with the configurations that we show to users; the boot uses those very files.
    pub examples: &'a Path,
}

/// Writes dom0's initramfs: a base that only changes with Debian's parts and our agent, and the job behind it.
pub fn dom0(parts: &Parts, ours: &Ours<'_>, task: &Task, to: &Path) -> Result<()> {
    let load = match task {
        Task::Probe { .. } | Task::Test { .. } | Task::Story { .. } => None,
        _ => Some(compiled::<&str>(LOAD, &[], to)?),
    };
    let guest = guest(parts, ours.agent, load.as_deref())?;
    let mut tree = Tree::new(parts, ours.agent)?;
    for program in DOM0_PROGRAMS {
        tree.program(&parts.root().join(program), &format!("/{program}"))?;
    }
    ensure!(ours.tap_ctl.exists(), "{} is not built: run `make build`", ours.tap_ctl.display());
    tree.copy_executable(ours.tap_ctl, "/usr/bin/tap-ctl")?;
    ensure!(ours.vhd.exists(), "{} is not built: run `make build`", ours.vhd.display());
    tree.copy_executable(ours.vhd, "/usr/bin/vhd")?;
    for (program, dialect) in RAW_PROGRAMS {
        let built = compiled(RAW_MESSAGES, dialect, to)?;
        tree.archive.file(program, 0o755, &built)?;
    }
    let [headers, library] = ["usr/include", "usr/lib/x86_64-linux-gnu/libvhdi.a"].map(|part| parts.root().join(part));
    let built = compiled(READ_CHAIN, &[OsStr::new("-I"), headers.as_ref(), library.as_ref()], to)?;
    tree.archive.file(READ_CHAIN_PROGRAM, 0o755, &built)?;
    if matches!(task, Task::Footprint { .. }) {
        tree.archive.file(footprint::UNTIL, 0o755, &compiled::<&str>(UNTIL, &[], to)?)?;
    }
    if task.has_qdisk() {
        tree.program(&parts.root().join(&QDISK[1..]), QDISK)?;
        tree.copy(&parts.root().join(&KEYMAP[1..]), KEYMAP)?;
    }
    // xl looks for its helpers below its own versioned folder, people look for xl on their path.
    for name in ["xl", "xenconsole"] {
        tree.archive.symlink(&format!("/usr/bin/{name}"), &format!("../lib/xen-4.17/bin/{name}"))?;
    }
    tree.modules(parts, DOM0_MODULES)?;
    for folder in ["/etc/xen", "/etc/xen/scripts", "/boot", "/usr/share/tapdom", "/var/log/xen/console", "/var/lib/xen"]
    {
        tree.folder(folder)?;
    }
    tree.archive.file("/etc/xen/xl.conf", 0o644, b"")?;
    // libxl calls this for every disk that dom0 itself serves; the agent answers under that name.
    tree.archive.symlink("/etc/xen/scripts/block", "/init")?;
    tree.copy(&parts.vmlinux(), "/boot/vmlinuz")?;
    tree.archive.file("/boot/guest.img", 0o644, &guest)?;
    tree.copy(&parts.tools_disk(), "/boot/tools.img")?;
    for name in ["tapdom.cfg", "guest.cfg"] {
        let example = ours.examples.join(name);
        if example.exists() {
            tree.copy(&example, &format!("/etc/xen/{name}"))?;
        }
    }
    if let Some(domain) = ours.domain {
        tree.copy(domain, "/boot/domain.elf")?;
    }
    tree.archive.file(JOB_PATH, 0o644, task.to_string().as_bytes())?;
    fs::write(to, tree.archive.finish()?).with_context(|| format!("writing {}", to.display()))
}

/// A static program made of a C source and further words, libraries among them; `beside` is where its files may be for a moment.
fn compiled<S: AsRef<OsStr>>(source: &str, words: &[S], beside: &Path) -> Result<Vec<u8>> {
    let [text, binary] = ["c", "built"].map(|extension| beside.with_extension(extension));
    fs::write(&text, source).with_context(|| format!("writing {}", text.display()))?;
    let flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s"];
    run(Command::new("gcc").args(flags).arg("-o").arg(&binary).arg(&text).args(words))
        .context("compiling a program of the boot: install gcc and libc6-dev")?;
    let bytes = fs::read(&binary)?;
    fs::remove_file(&text)?;
    fs::remove_file(&binary)?;
    Ok(bytes)
}

/// The guests' initramfs: no job, so the agent knows it is in a guest.
fn guest(parts: &Parts, agent: &Path, load: Option<&[u8]>) -> Result<Vec<u8>> {
    let mut tree = Tree::new(parts, agent)?;
    if let Some(load) = load {
        tree.archive.file(exercise::LOAD, 0o755, load)?;
    }
    tree.modules(parts, GUEST_MODULES)?;
    Ok(tree.archive.finish()?)
}

/// An archive with what dom0 and the guests share: the agent as init, busybox, xenstore's programs.
struct Tree {
    archive: Archive<Vec<u8>>,
    folders: Vec<String>,
    libraries: Vec<String>,
    root: PathBuf,
}

impl Tree {
    fn new(parts: &Parts, agent: &Path) -> Result<Tree> {
        ensure!(agent.exists(), "{} is not built: run `cargo build --release -p tools`", agent.display());
        let mut tree =
            Tree { archive: Archive::new(Vec::new()), folders: Vec::new(), libraries: Vec::new(), root: parts.root() };
        for folder in
            ["/dev", "/proc", "/sys", "/run", "/tmp", "/tools", "/mnt", "/usr/bin", "/bin", "/sbin", "/lib64", "/etc"]
        {
            tree.folder(folder)?;
        }
        tree.archive.device("/dev/console", 5, 1)?;
        tree.program(agent, "/init")?;
        // The kernel calls these when the toolstack asks a guest to go.
        for name in ["poweroff", "reboot"] {
            tree.archive.symlink(&format!("/sbin/{name}"), "/init")?;
        }
        tree.copy_executable(&parts.root().join("bin/busybox"), "/bin/busybox")?;
        let loader = parts.root().join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        tree.copy_executable(&loader, "/lib64/ld-linux-x86-64.so.2")?;
        tree.program(&parts.root().join("usr/bin/xenstore"), "/usr/bin/xenstore")?;
        for name in XENSTORE {
            tree.archive.symlink(&format!("/usr/bin/xenstore-{name}"), "xenstore")?;
        }
        Ok(tree)
    }

    /// Adds a folder and those above it, once each.
    fn folder(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]) {
            let prefix = &path[..at];
            if !self.folders.iter().any(|known| known == prefix) {
                self.archive.directory(prefix)?;
                self.folders.push(prefix.to_owned());
            }
        }
        Ok(())
    }

    fn parent(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) if !parent.is_empty() => self.folder(parent),
            _ => Ok(()),
        }
    }

    fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        self.put(from, to, 0o644)
    }

    fn copy_executable(&mut self, from: &Path, to: &str) -> Result<()> {
        self.put(from, to, 0o755)
    }

    fn put(&mut self, from: &Path, to: &str, permissions: u32) -> Result<()> {
        self.parent(to)?;
        let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        Ok(self.archive.file(to, permissions, &bytes)?)
    }

    /// Adds a program with the libraries it needs.
    fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        self.copy_executable(from, to)?;
        for (name, file) in elf::libraries(&self.root.clone(), &[from.to_owned()])? {
            // The loader is no library one links with, and has its own place.
            if name.starts_with("ld-linux") || self.libraries.contains(&name) {
                continue;
            }
            self.copy_executable(&file, &format!("/lib/x86_64-linux-gnu/{name}"))?;
            self.libraries.push(name);
        }
        Ok(())
    }

    /// Adds modules, numbered in the order in which they must be loaded.
    fn modules(&mut self, parts: &Parts, names: &[&str]) -> Result<()> {
        for (at, file) in modules_in_order(parts, names)?.iter().enumerate() {
            let name = file.file_name().and_then(|name| name.to_str()).context("a module's name")?;
            self.copy(file, &format!("/modules/{at:02}-{name}"))?;
        }
        Ok(())
    }
}

/// Builds the disk of tools: a read-only ext4 without a journal, with the programs and their libraries.
pub fn tools_disk(parts: &Parts, programs: &[&str]) -> Result<()> {
    let disk = parts.tools_disk();
    let staging = disk.with_extension("staging");
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    fs::create_dir_all(staging.join("bin"))?;
    fs::create_dir_all(staging.join("lib"))?;
    let files: Vec<PathBuf> = programs.iter().map(|program| parts.root().join(program)).collect();
    for file in &files {
        let name = file.file_name().context("a program's name")?;
        fs::copy(file, staging.join("bin").join(name)).with_context(|| format!("copying {}", file.display()))?;
    }
    let mut bytes = 0;
    for (name, file) in elf::libraries(&parts.root(), &files)? {
        bytes += fs::copy(&file, staging.join("lib").join(name))?;
    }
    // Room for the programs and for ext4's own tables.
    let mebibytes = bytes / (1 << 20) + 24;
    if disk.exists() {
        fs::remove_file(&disk)?;
    }
    run(Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdout(Stdio::null())
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
        .arg(&staging)
        .arg(&disk)
        .arg(format!("{mebibytes}M")))
    .context("building the disk of tools")?;
    fs::remove_dir_all(&staging)?;
    Ok(())
}
