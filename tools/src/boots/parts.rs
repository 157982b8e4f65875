//! The parts of a test boot that are Debian's: fetched once with Debian's own tools, unpacked into a cache folder,
//! never installed. Needs no root, except to install QEMU where it is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{elf, image, kernel};

/// Packages by name. Libraries are listed because `apt-get download` follows no dependencies; one that is missing is
/// noticed when an image is built ([`elf::libraries`]).
const PACKAGES: &[&str] = &[
    // the hypervisor and its tools
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmisc4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "libnl-3-200",
    "libnl-route-3-200",
    "libfdt1",
    "libncurses6",
    "libtinfo6",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "libaio1",
    // programs that judge disks, none of them ours
    "busybox-static",
    "e2fsprogs",
    "fdisk",
    "util-linux",
    "fio",
    "libext2fs2",
    "libss2",
    "libcom-err2",
    "libblkid1",
    "libuuid1",
    "libfdisk1",
    "libsmartcols1",
    "libmount1",
    "libreadline8",
    "libselinux1",
    "libpcre2-8-0",
    // what both stand on
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libzstd1",
    "liblzma5",
    "libbz2-1.0",
    // fio is linked with every kind of storage that Debian knows
    "libnuma1",
    "libgfapi0",
    "libgfrpc0",
    "libgfxdr0",
    "libglusterfs0",
    "libtirpc3",
    "libacl1",
    "libnbd0",
    "libgnutls30",
    "libxml2",
    "libicu72",
    "libibverbs1",
    "librdmacm1",
    "librados2",
    "librbd1",
    "libpmem1",
    "libpmemblk1",
    "libdaxctl1",
    "libndctl6",
    "libkmod2",
    "libboost-iostreams1.74.0",
    "libboost-thread1.74.0",
    "libfmt9",
    "libssl3",
    "libudev1",
    "libcryptsetup12",
    "libargon2-1",
    "libdevmapper1.02.1",
    "libjson-c5",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkrb5-3",
    "libkrb5support0",
    "libkeyutils1",
    "libgmp10",
    "libhogweed6",
    "libnettle8",
    "libidn2-0",
    "libunistring2",
    "libp11-kit0",
    "libtasn1-6",
    "libffi8",
    // LVM2
    "lvm2",
    "libdevmapper-event1.02.1",
    "libedit2",
    "libbsd0",
    "libmd0",
    "libtinfo6",
    // qemu-img
    "qemu-utils",
    "liburing2",
    "libglib2.0-0",
    "libpcre2-8-0",
    // a reader of differencing VHDs, as headers and a static library
    "libvhdi-dev",
];

/// QEMU as a backend in dom0, for the benchmark alone, with the libraries that it is linked with.
const QDISK_PACKAGES: &[&str] = &[
    "qemu-system-xen",
    "qemu-system-data",
    "libpixman-1-0",
    "libspice-server1",
    "libjpeg62-turbo",
    "libusb-1.0-0",
    "libgstreamer1.0-0",
    "libgstreamer-plugins-base1.0-0",
    "liborc-0.4-0",
    "libopus0",
    "libsasl2-2",
    "libunwind8",
    "libdw1",
    "libelf1",
];

/// The package whose only dependency is Debian's newest kernel.
const KERNEL: &str = "linux-image-amd64";

/// Programs for the disk of tools that dom0 and the guests mount read-only: too big to unpack into every guest.
const JUDGES: &[&str] = &[
    "usr/bin/fio",
    "usr/bin/qemu-img",
    "sbin/lvm",
    "sbin/mke2fs",
    "sbin/e2fsck",
    "sbin/resize2fs",
    "sbin/fstrim",
    "sbin/sfdisk",
    "sbin/blockdev",
];

/// Debian's parts, fetched and unpacked.
pub struct Parts {
    cache: PathBuf,
    release: String,
}

impl Parts {
    /// The parts as an earlier [`Parts::fetch`] left them.
    pub fn open(cache: &Path) -> Result<Parts> {
        let stamp = cache.join("fetched");
        let release = fs::read_to_string(&stamp).with_context(|| {
            format!("{} is not there: run `boots fetch` once to fetch Debian's parts", stamp.display())
        })?;
        let (packages, release) = release.split_once('\n').context("a stamp of two lines")?;
        ensure!(
            packages == wanted(),
            "{} was fetched for another list of packages: run `boots fetch` again",
            cache.display()
        );
        need_qemu()?;
        Ok(Parts { cache: cache.to_owned(), release: release.trim_end().to_owned() })
    }

    /// Fetches what is missing and unpacks it. Says what it does through `say`.
    pub fn fetch(cache: &Path, say: impl Fn(&str)) -> Result<Parts> {
        install_qemu(&say)?;
        if let Ok(parts) = Parts::open(cache) {
            say("Debian's parts are in the cache already");
            return Ok(parts);
        }
        for program in ["apt-get", "apt-cache", "dpkg-deb", "gzip", "xz", "mke2fs"] {
            ensure!(
                present(program),
                "`{program}` is missing: the test boots are made of Debian 12's packages, and need \
                                       its tools to fetch them"
            );
        }
        refresh_lists(&say)?;
        let kernel = kernel_package()?;
        let debs = cache.join("debs");
        fs::create_dir_all(&debs)?;
        let missing: Vec<&str> =
            PACKAGES.iter().copied().chain([kernel.as_str()]).filter(|package| deb(&debs, package).is_none()).collect();
        if !missing.is_empty() {
            say(&format!("fetching {} of Debian's packages (about 130 MB in all)", missing.len()));
            if let Err(error) = download(&debs, &missing) {
                // Lists that are older than a security update name packages that the mirror no longer has, or miss the
                // version that is installed here.
                if !rustix::process::geteuid().is_root() {
                    return Err(error);
                }
                update_lists(&say)?;
                download(&debs, &missing)?;
            }
        }
        say("unpacking");
        let root = cache.join("root");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        for package in PACKAGES.iter().copied().chain([kernel.as_str()]) {
            let file = deb(&debs, package).with_context(|| format!("{package} was fetched but is not there"))?;
            run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))
                .with_context(|| format!("unpacking {}", file.display()))?;
        }
        let release = kernel.strip_prefix("linux-image-").context("a kernel's package")?.to_owned();
        let parts = Parts { cache: cache.to_owned(), release };
        parts.unzip_xen()?;
        kernel::unpack(&parts.vmlinuz(), &parts.vmlinux())?;
        say("building the disk of tools");
        image::tools_disk(&parts, JUDGES)?;
        fs::write(cache.join("fetched"), format!("{}\n{}\n", wanted(), parts.release))?;
        Ok(parts)
    }

    /// Fetches QEMU for dom0 too, if it is not there.
    pub fn fetch_qdisk(&self, say: impl Fn(&str)) -> Result<()> {
        let (stamp, wanted) = (self.root().join("qdisk"), QDISK_PACKAGES.join(" "));
        if fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) {
            return Ok(());
        }
        let debs = self.cache.join("debs");
        say(&format!("fetching {} more of Debian's packages, for QEMU in dom0", QDISK_PACKAGES.len()));
        let missing: Vec<&str> =
            QDISK_PACKAGES.iter().copied().filter(|package| deb(&debs, package).is_none()).collect();
        if !missing.is_empty() {
            download(&debs, &missing)?;
        }
        for package in QDISK_PACKAGES {
            let file = deb(&debs, package).with_context(|| format!("{package} was fetched but is not there"))?;
            run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(self.root()))
                .with_context(|| format!("unpacking {}", file.display()))?;
        }
        fs::write(stamp, wanted).context("noting what was fetched")
    }

    /// The folder that everything was unpacked into.
    pub fn root(&self) -> PathBuf {
        self.cache.join("root")
    }

    /// The hypervisor, ready for QEMU's `-kernel`.
    pub fn xen(&self) -> PathBuf {
        self.cache.join("xen")
    }

    /// The kernel as Debian packs it.
    pub fn vmlinuz(&self) -> PathBuf {
        self.root().join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The kernel of dom0 and of every Linux guest, unpacked.
    pub fn vmlinux(&self) -> PathBuf {
        self.cache.join("vmlinux")
    }

    /// The kernel's modules.
    pub fn modules(&self) -> PathBuf {
        self.root().join(format!("lib/modules/{}", self.release))
    }

    /// The disk of tools.
    pub fn tools_disk(&self) -> PathBuf {
        self.cache.join("tools.img")
    }

    fn unzip_xen(&self) -> Result<()> {
        let packed = self.root().join("boot/xen-4.17-amd64.gz");
        let out = fs::File::create(self.xen())?;
        run(Command::new("gzip").arg("-dc").arg(&packed).stdout(out))
            .with_context(|| format!("unpacking {}", packed.display()))
    }
}

/// What the cache was made for; another list, or another way to prepare it, means another cache.
fn wanted() -> String {
    format!("cache 2: {} + {}", PACKAGES.join(" "), JUDGES.join(" "))
}

fn present(program: &str) -> bool {
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .chain(sbin)
        .any(|folder| folder.join(program).exists())
}

/// The emulator's program.
pub const QEMU: &str = "qemu-system-x86_64";

fn need_qemu() -> Result<()> {
    ensure!(present(QEMU), "`{QEMU}` is missing: install Debian's package with `sudo apt-get install qemu-system-x86`");
    Ok(())
}

fn install_qemu(say: &impl Fn(&str)) -> Result<()> {
    if present(QEMU) || !rustix::process::geteuid().is_root() {
        return need_qemu();
    }
    say("installing qemu-system-x86");
    refresh_lists(say)?;
    run(Command::new("apt-get").args(["install", "-y", "--no-install-recommends", "qemu-system-x86"]))
        .context("installing qemu-system-x86")?;
    need_qemu()
}

/// A fresh machine has no package lists; only root may fetch them.
fn refresh_lists(say: &impl Fn(&str)) -> Result<()> {
    if candidate(KERNEL) && candidate(PACKAGES[0]) {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        update_lists(say)?;
    }
    for package in [KERNEL, PACKAGES[0]] {
        ensure!(
            candidate(package),
            "apt knows no package {package}: run `sudo apt-get update`, and see that this is Debian 12 (bookworm) with \
             its main section"
        );
    }
    Ok(())
}

fn update_lists(say: &impl Fn(&str)) -> Result<()> {
    say("fetching the package lists");
    run(Command::new("apt-get").arg("update")).context("apt-get update")
}

fn candidate(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["show", "--no-all-versions", package])
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

fn kernel_package() -> Result<String> {
    let output = Command::new("apt-cache").args(["depends", "--important", KERNEL]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-6.1"))
        .map(str::to_owned)
        .with_context(|| format!("{KERNEL} depends on no linux-image-6.1 kernel: is this Debian 12? It says:\n{text}"))
}

fn deb(folder: &Path, package: &str) -> Option<PathBuf> {
    let prefix = format!("{package}_");
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".deb"))
    })
}

fn download(debs: &Path, packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "download"]).args(packages).current_dir(debs);
    if rustix::process::geteuid().is_root() {
        // apt's own user may not write into a cache folder of root's.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    run(&mut command).with_context(|| {
        format!(
            "fetching {}: is Debian's mirror reachable, and are its lists fresh (`sudo apt-get update`)?",
            packages.join(" ")
        )
    })?;
    let lost: Vec<&&str> = packages.iter().filter(|package| deb(debs, package).is_none()).collect();
    ensure!(lost.is_empty(), "apt-get download did not bring {lost:?}");
    Ok(())
}

/// Runs a program to its end; a failure carries everything it said.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
    let output = output.with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}:\n{}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The kernel modules that a boot loads, each after those it needs, as files.
pub fn modules_in_order(parts: &Parts, names: &[&str]) -> Result<Vec<PathBuf>> {
    let folder = parts.modules();
    let builtin = fs::read_to_string(folder.join("modules.builtin"))?;
    let mut files = Vec::new();
    collect_modules(&folder.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in names {
        place_module(name, &files, &builtin, &mut order)?;
    }
    Ok(order)
}

fn place_module(name: &str, files: &[PathBuf], builtin: &str, order: &mut Vec<PathBuf>) -> Result<()> {
    if builtin.lines().any(|line| module_name(Path::new(line)) == name.replace('-', "_")) {
        return Ok(());
    }
    let file = files
        .iter()
        .find(|file| module_name(file) == name.replace('-', "_"))
        .with_context(|| format!("Debian's kernel has no module {name}"))?;
    if order.contains(file) {
        return Ok(());
    }
    for needed in elf::module_needs(file)? {
        place_module(&needed, files, builtin, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// A module's name has underscores where its file may have dashes.
fn module_name(path: &Path) -> String {
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().replace('-', "_")
}

fn collect_modules(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect_modules(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            into.push(path);
        }
    }
    Ok(())
}
