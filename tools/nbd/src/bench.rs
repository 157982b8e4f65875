//! Servers side by side: fio asks each of them for the same, in turns, round after round. What is printed are medians and
//! ratios within a round, so that what a host does beside it in one round does no harm to the others.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each load.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// MiB of the disk.
    #[arg(long, default_value_t = 256)]
    mebibytes: u64,
    /// Where the images lie for as long as it takes: in memory, so that no disk is measured.
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
}

/// What serves what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Tapdom,
    Qemu,
    TapdomRaw,
    Nbdkit,
}

impl Server {
    const ALL: [Server; 4] = [Server::Tapdom, Server::Qemu, Server::TapdomRaw, Server::Nbdkit];

    fn name(self) -> &'static str {
        match self {
            Server::Tapdom => "tapdom, vhd",
            Server::Qemu => "qemu-nbd, vhd",
            Server::TapdomRaw => "tapdom, raw",
            Server::Nbdkit => "nbdkit, raw",
        }
    }

    fn is_vhd(self) -> bool {
        matches!(self, Server::Tapdom | Server::Qemu)
    }

    /// The command that serves the image at the socket, and the package it comes from.
    fn command(self, image: &Path, socket: &Path) -> Result<(Command, &'static str)> {
        let own = || env::current_exe().context("this program's own file");
        Ok(match self {
            Server::Tapdom => (with(own()?, &["serve"], &[image, socket]), "this one"),
            Server::TapdomRaw => (with(own()?, &["serve", "--format", "raw"], &[image, socket]), "this one"),
            Server::Qemu => (with("qemu-nbd", &["-t", "-f", "vpc", "-k"], &[socket, image]), "qemu-utils"),
            Server::Nbdkit => {
                let mut command = with("nbdkit", &["-f", "-U"], &[socket]);
                command.arg("file").arg(image);
                (command, "nbdkit")
            }
        })
    }
}

fn with(program: impl AsRef<std::ffi::OsStr>, words: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(program);
    command.args(words).args(paths);
    command
}

/// What is asked for: fio's word, bytes of a request, requests at once.
struct Load(&'static str, &'static str, &'static str, u32);

const LOADS: [Load; 8] = [
    Load("4 KiB random read, depth 1", "randread", "4k", 1),
    Load("4 KiB random read, depth 32", "randread", "4k", 32),
    Load("4 KiB random write, depth 1", "randwrite", "4k", 1),
    Load("4 KiB random write, depth 32", "randwrite", "4k", 32),
    Load("1 MiB sequential read, depth 1", "read", "1m", 1),
    Load("1 MiB sequential read, depth 32", "read", "1m", 32),
    Load("1 MiB sequential write, depth 1", "write", "1m", 1),
    Load("1 MiB sequential write, depth 32", "write", "1m", 32),
];

/// What came of a load.
#[derive(Clone, Copy, Debug)]
struct Figure {
    /// Requests in a second.
    rate: f64,
    /// Microseconds of processors that the server took for a request.
    cost: f64,
}

/// A server at work; it ends with this.
struct Running {
    child: Child,
    socket: PathBuf,
}

impl Running {
    fn start(server: Server, image: &Path, socket: PathBuf) -> Result<Running> {
        let (mut command, package) = server.command(image, &socket)?;
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.with_context(|| format!("{}: install Debian's package {package}", server.name()))?;
        let mut running = Running { child, socket };
        let limit = Instant::now() + Duration::from_secs(10);
        while !running.socket.exists() {
            let ended = running.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < limit, "{} does not serve: {ended:?}", server.name());
            thread::sleep(Duration::from_millis(10));
        }
        // It has its name before it listens.
        thread::sleep(Duration::from_millis(100));
        Ok(running)
    }

    /// Processor time so far, of all its threads, in microseconds.
    fn processor(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is a name in parentheses; user and system time are the 14th and 15th, in hundredths of a second.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).map(str::parse::<f64>).sum::<Result<_, _>>()?;
        Ok(ticks * 1e4)
    }

    fn load(&self, load: &Load, seconds: u32) -> Result<Figure> {
        let &Load(name, rw, bytes, depth) = load;
        let before = self.processor()?;
        let depth = format!("--iodepth={depth}");
        let (rw, bytes, time) = (format!("--rw={rw}"), format!("--bs={bytes}"), format!("--runtime={seconds}"));
        let job = fio(&self.socket, &[&rw, &bytes, &depth, &time, "--time_based", "--norandommap"])?;
        let part = |field: &str| -> Result<f64> {
            let of = |kind: &str| job[kind][field].as_f64().with_context(|| format!("{name}: fio tells no {field}"));
            Ok(of("read")? + of("write")?)
        };
        let requests = part("total_ios")?;
        ensure!(requests > 0.0, "{name}: nothing was done");
        Ok(Figure { rate: part("iops")?, cost: (self.processor()? - before) / requests })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is what ending it is for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Runs fio against a socket and returns what it tells of the job.
fn fio(socket: &Path, words: &[&str]) -> Result<Value> {
    let output = Command::new("fio")
        .args(["--name=load", "--ioengine=nbd", "--output-format=json", "--randrepeat=1"])
        .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
        .args(words)
        .output()
        .context("install Debian's package fio")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "fio {words:?}: {out}{err}");
    // Notes may stand before what was asked for.
    let json = out.get(out.find('{').context("fio told nothing")?..).unwrap_or_default();
    let mut told: Value = serde_json::from_str(json).with_context(|| format!("fio told: {out}"))?;
    let job = told["jobs"][0].take();
    ensure!(job["error"] == 0, "fio {words:?}: {job}");
    Ok(job)
}

fn qemu_img(arguments: &[&str], paths: &[&Path]) -> Result<()> {
    let output = with("qemu-img", arguments, paths).output().context("install Debian's package qemu-utils")?;
    ensure!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A folder that goes with this.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Compares the servers.
///
/// # Errors
/// What is missing, or what a server got wrong.
pub fn bench(options: &Options) -> Result<()> {
    let folder = Folder(options.folder.join(format!("nbd-{}", std::process::id())));
    fs::create_dir_all(&folder.0).with_context(|| format!("{}", folder.0.display()))?;
    let file = |name: &str| folder.0.join(name);
    verify(&file("verified.vhd"), &file("verified"))?;
    println!("fio verified what it wrote through tapdom, then read it again through qemu-nbd from the same image");

    let (raw, vhd) = (file("disk.raw"), file("disk.vhd"));
    fill(&raw, options.mebibytes)?;
    let form = ["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"];
    qemu_img(&form, &[&raw, &vhd])?;
    let mut running = Vec::new();
    for (index, server) in Server::ALL.into_iter().enumerate() {
        let image = file(&format!("{index}.image"));
        fs::copy(if server.is_vhd() { &vhd } else { &raw }, &image)?;
        running.push(Running::start(server, &image, file(&format!("{index}")))?);
    }
    let mut figures: Vec<Vec<Vec<Figure>>> = LOADS.iter().map(|_| vec![Vec::new(); Server::ALL.len()]).collect();
    for round in 1..=options.rounds {
        for (load, figures) in LOADS.iter().zip(&mut figures) {
            eprint!("\rround {round} of {}: {:<34}", options.rounds, load.0);
            for (server, figures) in running.iter().zip(figures) {
                figures.push(server.load(load, options.seconds)?);
            }
        }
    }
    eprintln!();
    print(&figures);
    Ok(())
}

/// Writes through tapdom at random, with many requests at once, and verifies; then lets QEMU read.
fn verify(image: &Path, socket: &Path) -> Result<()> {
    qemu_img(&["create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on"], &[image, Path::new("64M")])?;
    let job = [
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--size=64m",
    ];
    for (server, more) in [(Server::Tapdom, "--do_verify=1"), (Server::Qemu, "--verify_only")] {
        let running = Running::start(server, image, socket.to_owned())?;
        fio(&running.socket, &[&job[..], &[more]].concat())?;
    }
    Ok(())
}

/// A file whose bytes cannot be anything but data.
fn fill(path: &Path, mebibytes: u64) -> Result<()> {
    let mut file = fs::File::create_new(path).with_context(|| format!("{}", path.display()))?;
    let mut number = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        for word in bytes.as_chunks_mut().0 {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            *word = number.to_le_bytes();
        }
        file.write_all(&bytes)?;
    }
    Ok(())
}

/// The one in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The table: loads down, servers across, and what they are to each other.
fn print(figures: &[Vec<Vec<Figure>>]) {
    println!("\nrequests a second (microseconds of processors of the server for a request), medians");
    println!(
        "\n| load | {} | vhd: tapdom / qemu-nbd | raw: tapdom / nbdkit |",
        Server::ALL.map(Server::name).join(" | ")
    );
    println!("|---|{}---|---|", "---|".repeat(Server::ALL.len()));
    for (load, figures) in LOADS.iter().zip(figures) {
        let each = figures.iter().map(|rounds| {
            let rate = median(rounds.iter().map(|figure| figure.rate));
            format!("{rate:.0} ({:.1})", median(rounds.iter().map(|figure| figure.cost)))
        });
        let each: Vec<String> = each.collect();
        let ratio = |ours: Server, theirs: Server| {
            let rounds = || figures[ours as usize].iter().zip(&figures[theirs as usize]);
            let rate = median(rounds().map(|(ours, theirs)| ours.rate / theirs.rate));
            let cost = median(rounds().map(|(ours, theirs)| ours.cost / theirs.cost));
            format!("{rate:.2} ({cost:.2})")
        };
        let ratios = [ratio(Server::Tapdom, Server::Qemu), ratio(Server::TapdomRaw, Server::Nbdkit)].join(" | ");
        println!("| {} | {} | {ratios} |", load.0, each.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_one_of_them() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([3.0, 1.0].into_iter()), 3.0);
    }

    #[test]
    fn servers_stand_in_the_order_of_their_columns() {
        assert!(Server::ALL.iter().enumerate().all(|(index, server)| *server as usize == index));
    }
}
