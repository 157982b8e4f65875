//! QEMU as the client: what it writes and reads by NBD is what it finds in the image itself. Debian's qemu-utils has to be
//! installed; `make setup` does that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Whole sectors, but neither whole blocks nor whole cylinders.
const BYTES: usize = (9 << 20) + 1536;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = env::temp_dir().join(format!("nbd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !thread::panicking() {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// Runs a program; whether it was content, and what it said.
fn run(program: &str, words: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: qemu-utils has to be installed"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn done(program: &str, words: &[&str]) -> String {
    let (well, text) = run(program, words);
    assert!(well, "{program} {words:?}: {text}");
    text
}

/// Our server, for one client; it must have ended well at the end.
struct Server(Child, String);

impl Server {
    fn start(words: &[&str], image: &str) -> Server {
        let socket = format!("{image}.socket");
        let _ = fs::remove_file(&socket);
        let words = [&["serve", "--clients", "1"], words, &[image, &socket]].concat();
        let mut child = Command::new(env!("CARGO_BIN_EXE_nbd")).args(&words).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        while !Path::new(&socket).exists() {
            assert_eq!(child.try_wait().unwrap(), None, "{words:?}");
            assert!(Instant::now() < limit, "{words:?}: no socket");
            thread::sleep(Duration::from_millis(5));
        }
        // It has its name before it listens.
        thread::sleep(Duration::from_millis(50));
        Server(child, format!("nbd:unix:{socket}"))
    }

    fn end(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

/// Everything on the disk by NBD, with many requests at once.
fn by_nbd(image: &str) -> Vec<u8> {
    let (server, to) = (Server::start(&["--read-only"], image), format!("{image}.nbd"));
    done("qemu-img", &["convert", "-m", "16", "-W", "-f", "raw", "-O", "raw", &server.1, &to]);
    server.end();
    fs::read(to).unwrap()
}

/// The same by QEMU from the image.
fn by_qemu(image: &str) -> Vec<u8> {
    let to = format!("{image}.raw");
    done("qemu-img", &["convert", "-f", "vpc", "-O", "raw", image, &to]);
    fs::read(to).unwrap()
}

/// What cannot be anything else: each word tells its place.
fn content() -> Vec<u8> {
    let words = (0..BYTES as u64 / 8).map(|at| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let mut bytes: Vec<u8> = words.flatten().collect();
    // Some of it is nothing.
    bytes[3 << 20..5 << 20].fill(0);
    bytes
}

fn vhd_created(path: &str) {
    let size = BYTES.to_string();
    done("qemu-img", &["create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", path, &size]);
}

#[test]
fn what_is_copied_in_is_in_the_image_and_comes_out_again() {
    let folder = Folder::new("copies");
    let (raw, image) = (folder.file("from"), folder.file("image.vhd"));
    let content = content();
    fs::write(&raw, &content).unwrap();
    vhd_created(&image);
    let server = Server::start(&[], &image);
    done("qemu-img", &["convert", "-n", "-m", "16", "-W", "-f", "raw", "-O", "raw", &raw, &server.1]);
    server.end();
    assert!(by_qemu(&image) == content, "by QEMU");
    assert!(by_nbd(&image) == content, "by NBD");
}

#[test]
fn a_child_is_written_and_its_parent_is_not() {
    let folder = Folder::new("chain");
    let (base, leaf) = (folder.file("base.vhd"), folder.file("leaf.vhd"));
    vhd_created(&base);
    let server = Server::start(&[], &base);
    done("qemu-io", &["-f", "raw", "-c", "write -P 17 0 9M", &server.1]);
    server.end();
    let before = fs::read(&base).unwrap();
    snapshot(&base, &leaf);
    let server = Server::start(&[], &leaf);
    let commands = [
        "aio_write -P 99 1M 64k",
        "aio_write -P 98 3M 4k",
        "aio_flush",
        "read -P 99 1M 64k",
        "write -f -P 97 512 512",
        "write -z 4M 1M",
        "discard 1M 4k",
        "read -P 17 0 512",
        "read -P 97 512 512",
        "read -P 17 1024 1047552",
        "read -P 98 3M 4k",
        "read -P 0 4M 1M",
        "read -P 17 5M 4M",
    ];
    let words: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let text = done("qemu-io", &[&["-f", "raw"], &words[..], &[&server.1]].concat());
    assert!(!text.contains("failed") && !text.contains("error"), "{text}");
    server.end();
    assert!(fs::read(&base).unwrap() == before);
    let now = by_nbd(&leaf);
    assert!(now[3 << 20..(3 << 20) + 4096].iter().all(|byte| *byte == 98));
    assert!(now[4 << 20..5 << 20].iter().all(|byte| *byte == 0));
    assert!(now[5 << 20..9 << 20].iter().all(|byte| *byte == 17));
}

/// An empty child, by our engine: QEMU makes none.
fn snapshot(base: &str, leaf: &str) {
    use clap::Parser;
    let arguments = vhd::arguments::Arguments::parse_from(["vhd", "snapshot", leaf, base]);
    vhd::commands::run(&arguments, None, &mut Vec::new()).unwrap();
}
