//! Domains as xl sees them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::process::{Said, ask, run};

/// libxl's own waits are 10 s each and a failed create has three of them; under emulation its work doubles that.
pub const XL: Duration = Duration::from_secs(90);

/// Creates a domain from one of the examples, with some settings replaced.
pub fn create(example: &str, settings: &[String]) -> Result<()> {
    let file = format!("/etc/xen/{example}");
    ensure!(fs::exists(&file)?, "docs/examples/{example} is not in this boot");
    let mut words = vec!["xl", "create"];
    // Options come first, then the file, then what it is to say differently.
    let (options, settings): (Vec<&str>, Vec<&str>) =
        settings.iter().map(String::as_str).partition(|word| word.starts_with('-'));
    words.extend(options.into_iter().chain([file.as_str()]).chain(settings));
    run(&words, XL).map(drop)
}

/// The id of a domain that is there.
pub fn id(name: &str) -> Result<u32> {
    let out = run(&["xl", "domid", name], XL)?;
    out.trim().parse().with_context(|| format!("the id of {name}, from {out:?}"))
}

/// Every domain's name, sorted. A domain that is dead but not gone has the name "(null)".
pub fn names() -> Result<Vec<String>> {
    let out = run(&["xl", "list"], XL)?;
    let mut names: Vec<String> =
        out.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// Ends a domain at once.
pub fn destroy(name: &str) -> Result<Said> {
    ask(&["xl", "destroy", name], XL)
}

/// Asks a domain to shut down and waits until it is gone, at most so long.
pub fn shutdown(name: &str, limit: Duration) -> Result<()> {
    run(&["xl", "shutdown", name], XL)?;
    let deadline = Instant::now() + limit;
    while names()?.iter().any(|known| known == name) {
        if Instant::now() > deadline {
            bail!("{name} is still there {} s after xl shutdown: {}", limit.as_secs(), run(&["xl", "list"], XL)?);
        }
        // xl list takes a quarter of a second under emulation, so this is no busy loop.
    }
    Ok(())
}

/// What a domain has said on its console so far.
pub fn console(name: &str) -> String {
    fs::read(format!("/var/log/xen/console/guest-{name}.log"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// What xl's own watcher of a domain has written.
pub fn xl_log(name: &str) -> String {
    fs::read_to_string(format!("/var/log/xen/xl-{name}.log")).unwrap_or_default()
}
