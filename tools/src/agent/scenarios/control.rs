//! The control plane on real Xen: tap-ctl in dom0, over the vchan, and the disks that it makes.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::agent::backend::Source;
use crate::agent::domain::XL;
use crate::agent::exercise::Exercise::{Expect, Fio, Write};
use crate::agent::load::{DEPTH, Load};
use crate::agent::process::run;
use crate::agent::tap_ctl::{Daemon, Messages, asked, done};
use crate::agent::world::{Side, World};

/// `state` of LIST.
const PAUSED: &str = "0x2a";

const XVDA: &str = "/dev/xvda";

/// Where libxenvchan's proxy listens.
const PROXY: &str = "/run/proxy";

/// The folder in which tap-ctl sets minors apart.
const MARKERS: &str = "/run/blktap-control/tapdisk/tapdisk-";

/// A disk's whole life by commands, with dom0's blkfront attached to it by xl.
pub fn life(world: &mut World<'_>) -> Result<()> {
    let id = world.server.id;
    let nobody = format!("pid={id}\n");
    demand(&done(&["list"])?, &nobody, "the list of a fresh domain")?;
    let said = asked(&["pause", "-m", "3"])?;
    let refused = format!("tap-ctl: tapdom (domain {id}), minor 3: pause: minor 3: no such minor");
    ensure!(said.code == Some(19) && said.words() == refused, "pause without a VBD: {said:?}");
    for (minor, image, sectors) in [(0, "ram:4M", 8192), (1, "aio:/dev/xvdd", 131_072)] {
        demand(&done(&["create", "-a", image])?, &format!("{MARKERS}{minor}\n"), "create")?;
        let info = format!("sectors={sectors} sector-size=512 info=0\n");
        demand(&done(&["info", "-m", &minor.to_string()])?, &info, image)?;
    }
    let both = format!("pid={id} minor=0 state=0 args=ram:4M\npid={id} minor=1 state=0 args=aio:/dev/xvdd\n");
    demand(&done(&["list"])?, &both, "the list of both")?;
    world.attach(Side::Dom0, "xvda", "rw", Source::Minor(1))?;
    world.ask(Side::Dom0, &Fio { disk: XVDA.to_owned(), seed: 141 })?;
    demand_traffic(world)?;
    world.detach(Side::Dom0, "xvda")?;
    for minor in ["0", "1"] {
        demand(&done(&["destroy", "-m", minor])?, "", "destroy")?;
    }
    demand(&done(&["list"])?, &nobody, "the list when all is destroyed")
}

/// STATS tells what fio did, and what trace tells of a write is that write.
fn demand_traffic(world: &mut World<'_>) -> Result<()> {
    let text = done(&["stats", "-m", "1"])?;
    let stats: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let number = |path: &str| stats.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path}: {text}"));
    // fio writes 44 MiB and reads them again.
    let sectors = (44 << 20) / 512;
    let (read, written) = (number("/secs/0")?, number("/secs/1")?);
    ensure!(written >= sectors && read >= sectors, "{read} sectors read, {written} written: {text}");
    let (taken, answered) = (number("/xenbus/reqs/0")?, number("/xenbus/reqs/1")?);
    ensure!(taken == answered && taken > 0, "{taken} requests taken, {answered} answered: {text}");
    let counted = number("/tapdom/latency/read/count")? + number("/tapdom/latency/write/count")?;
    ensure!(counted <= taken && counted > 0, "{counted} latencies of {taken} requests: {text}");
    ensure!(number("/tapdom/minor")? == 1 && number("/reqs_outstanding")? == 0, "{text}");
    world.reporter.step(format!("stats of fio: {read} sectors read, {written} written, {taken} requests"));
    let trace = std::thread::spawn(|| done(&["trace", "-m", "1", "-i", "1", "-n", "2"]));
    // One write a tenth of a second, until the second look has been taken.
    let mut seed = 0;
    while !trace.is_finished() {
        seed += 1;
        world.ask(Side::Dom0, &Write { disk: XVDA.to_owned(), offset: 0, length: 1 << 20, seed })?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let trace = trace.join().map_err(|_| anyhow::anyhow!("the thread of trace panicked"))??;
    let looks: Vec<&str> = trace.lines().collect();
    ensure!(looks.len() == 2 && looks[0] == "minor=1 state=0 args=aio:/dev/xvdd", "{trace:?}");
    let sectors = looks[1].split([' ', '=', ',']).nth(4).and_then(|written| written.parse::<u64>().ok());
    ensure!(sectors.is_some_and(|sectors| sectors >= 2048), "trace saw no write: {trace:?}");
    world.reporter.detail(&trace);
    Ok(())
}

/// PAUSE under load again and again, then the image exchanged under it, then CLOSE under load.
pub fn pause(world: &mut World<'_>) -> Result<()> {
    const SEED: u64 = 151;
    const ROUNDS: usize = 3;
    demand(&done(&["create", "-a", "aio:/dev/xvdc"])?, &format!("{MARKERS}0\n"), "create")?;
    world.attach(Side::Dom0, "xvda", "rw", Source::Minor(0))?;
    let load = Load::begin(XVDA, SEED)?;
    let proxy = Daemon::proxy(world.server.id, "data/tapdisk", PROXY)?;
    let mut messages = Messages::connect(PROXY)?;
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        load.await_more(10 * DEPTH)?;
        let paused = messages.pause(0)?;
        let listed = done(&["list", "-m", "0"])?;
        ensure!(listed.contains(PAUSED), "paused: {listed}");
        // Who waits for an answer hears of at most one that was given before.
        let held = load.moments().iter().filter(|moment| **moment > paused.1).count();
        ensure!(held <= DEPTH, "{held} requests were done after the pause");
        let image = if round + 1 < ROUNDS { "" } else { "aio:/dev/xvdd" };
        if !image.is_empty() {
            world.lower[2].copy_to(&world.lower[3])?;
        }
        let resumed = messages.resume(0, image)?;
        load.await_more(DEPTH)?;
        gaps.push(Gap::of(&load.moments(), paused, resumed)?);
    }
    world.reporter.step(format!("pauses under {DEPTH} requests in flight, the last onto another image:"));
    gaps.iter().for_each(|gap| world.reporter.step(format!("  {gap}")));
    load.await_more(10 * DEPTH)?;
    let requests = load.end()?;
    world.reporter.detail(&format!("{requests} requests before and after the pauses"));
    world.ask(Side::Dom0, &Write { disk: XVDA.to_owned(), offset: 40 << 20, length: 1 << 20, seed: SEED })?;
    world.look_below(3, |disk| Expect { disk, offset: 40 << 20, length: 1 << 20, seed: SEED })?;
    drop((messages, proxy));
    fs::remove_file(PROXY)?;
    close_under_load(world)
}

/// CLOSE answers while requests come; they get errors from then on, and nothing is left when the guest has let go.
fn close_under_load(world: &mut World<'_>) -> Result<()> {
    let load = Load::begin(XVDA, 152)?;
    load.await_more(10 * DEPTH)?;
    demand(&done(&["close", "-m", "0"])?, "", "close under load")?;
    let listed = done(&["list", "-m", "0"])?;
    ensure!(listed.contains("state=0x2"), "closed: {listed}");
    let Err(error) = load.end() else { bail!("the load went on after the close") };
    ensure!(format!("{error:#}").contains("os error 5"), "the load ended with {error:#}");
    let said = asked(&["detach", "-m", "0"])?;
    ensure!(said.code == Some(16), "detach while a directory has it: {said:?}");
    world.detach(Side::Dom0, "xvda")?;
    demand(&done(&["destroy", "-m", "0"])?, "", "destroy")
}

/// What a guest saw of a pause: moments at which its requests were done, messages and their answers.
struct Gap {
    /// From PAUSE to the last request that was in flight.
    drained: Duration,
    /// From then to PAUSE's answer.
    answered: Duration,
    /// From RESUME to the first request that was done again.
    resumed: Duration,
}

impl Gap {
    fn of(moments: &[Instant], paused: (Instant, Instant), resumed: (Instant, Instant)) -> Result<Gap> {
        let before =
            moments.iter().filter(|moment| **moment < resumed.0).max().context("no request before the pause")?;
        let after = moments.iter().filter(|moment| **moment > resumed.0).min().context("no request after the pause")?;
        // A thread may hear of its answer after PAUSE's was heard.
        let last = (*before).min(paused.1);
        Ok(Gap {
            drained: last.saturating_duration_since(paused.0),
            answered: paused.1.saturating_duration_since(last),
            resumed: after.saturating_duration_since(resumed.0),
        })
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap { drained, answered, resumed } = self;
        let ms = |duration: &Duration| duration.as_micros() as f64 / 1000.0;
        let beyond = *answered + *resumed;
        write!(f, "drained in {:.1} ms; beyond that the guest stood still for {:.1} ms", ms(drained), ms(&beyond))?;
        write!(f, " ({:.1} before PAUSE's answer, {:.1} after RESUME)", ms(answered), ms(resumed))
    }
}

/// A tap-ctl that is killed while its pause is at work, and one that is killed before the domain has looked at it.
pub fn killed(world: &mut World<'_>) -> Result<()> {
    let (id, name) = (world.server.id, world.server.name.clone());
    demand(&done(&["create", "-a", "aio:/dev/xvdc"])?, &format!("{MARKERS}0\n"), "create")?;
    world.attach(Side::Dom0, "xvda", "rw", Source::Minor(0))?;
    let load = Load::begin(XVDA, 161)?;
    load.await_more(10 * DEPTH)?;
    for _ in 0..3 {
        kill_pause()?;
        // It was done or it was not: the next who asks learns which.
        let listed = done(&["list"])?;
        let state = |word: &str| format!("pid={id} minor=0 state={word} args=aio:/dev/xvdc\n");
        ensure!([state("0"), state(PAUSED)].contains(&listed), "after a pause that was killed: {listed}");
        done(&["pause", "-m", "0"])?;
        done(&["unpause", "-m", "0"])?;
        load.await_more(DEPTH)?;
    }
    run(&["xl", "pause", &name], XL)?;
    let killed = kill_pause();
    run(&["xl", "unpause", &name], XL)?;
    killed?;
    demand(&done(&["list"])?, &format!("pid={id} minor=0 state=0 args=aio:/dev/xvdc\n"), "after one that was not met")?;
    load.await_more(DEPTH)?;
    load.end()?;
    world.detach(Side::Dom0, "xvda")?;
    demand(&done(&["destroy", "-m", "0"])?, "", "destroy")
}

/// Starts a pause and kills it as soon as it has said that it is to send its message.
fn kill_pause() -> Result<()> {
    let mut child = Command::new("tap-ctl")
        .args(["--debug", "pause", "-m", "0"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting tap-ctl")?;
    let mut line = String::new();
    BufReader::new(child.stderr.take().context("its words")?).read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    ensure!(line.contains("Pause"), "tap-ctl --debug pause says {line:?}");
    Ok(())
}

/// Demands what a command printed.
pub(super) fn demand(said: &str, wanted: &str, what: &str) -> Result<()> {
    ensure!(said == wanted, "{what}: {said:?}, not {wanted:?}");
    Ok(())
}
