//! Bring-up: create one PVH domain from an ELF file and show everything it and Xen say about it.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::process::ask;
use super::reporter::Reporter;

/// libxl gives up on its own waits long before this.
const XL: Duration = Duration::from_secs(90);

/// Creates the domain, lets it run for `seconds`, shows its console, `xl list` and `xl dmesg`.
pub fn probe(reporter: &Reporter, cmdline: &str, memory_mib: u32, seconds: u32) -> Result<()> {
    let config = format!(
        "name = \"probe\"\ntype = \"pvh\"\nkernel = \"/boot/domain.elf\"\ncmdline = \"{}\"\nmemory = {memory_mib}\n\
         vcpus = 1\ntsc_mode = \"native\"\non_crash = \"preserve\"\non_poweroff = \"preserve\"\n",
        cmdline.replace('\\', "\\\\").replace('"', "\\\"")
    );
    fs::write("/etc/xen/probe.cfg", config)?;
    let created = ask(&["xl", "-v", "create", "/etc/xen/probe.cfg"], XL)?;
    reporter.step(format!("xl create ended with {:?} after {} ms", created.code, created.took.as_millis()));
    show(reporter, "xl create", &created.words());
    if created.ok() {
        thread::sleep(Duration::from_secs(u64::from(seconds)));
    }
    show(reporter, "xl list", &ask(&["xl", "list"], XL)?.out);
    for entry in fs::read_dir("/var/log/xen/console")?.flatten() {
        let text = fs::read(entry.path())?;
        show(reporter, &format!("console {}", entry.file_name().display()), &String::from_utf8_lossy(&text));
    }
    // Xen's own boot is in the boot's log; what follows is about domains.
    let dmesg = ask(&["xl", "dmesg"], XL)?.out;
    show(reporter, "xl dmesg", dmesg.split_once(" init memory").map_or(dmesg.as_str(), |(_, since)| since));
    Ok(())
}

fn show(reporter: &Reporter, title: &str, text: &str) {
    reporter.step(format!("--- {title} ---"));
    for line in text.lines() {
        reporter.step(line);
    }
}
