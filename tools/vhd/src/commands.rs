//! What each command does, and what it prints.

pub mod coalesce;
mod create;
pub mod fields;
mod query;
pub mod repair;
pub mod resize;
mod under;

use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::vhd::{Footer, Id, Kind};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Value, json};
use tap_ctl::host::Target;

use crate::arguments::{Arguments, Check, Command, Under};
use crate::check::{Options, check};
use crate::disk::load;
use crate::domains::{Role, none_has};
use crate::failure::Failure;
use crate::store::{Access, FileStore};
use drivers::disk::Device;
use under::{Hold, Next};

/// Seconds from 1970 to 2000.
const YEAR_2000: u64 = 946_684_800;

/// Does what the command line says. Storage domains are asked whether they have what is written, or read while nobody may
/// write it.
///
/// # Errors
/// Why it could not be done.
pub fn run(arguments: &Arguments, domains: Option<&Target<'_>>, out: &mut dyn Write) -> Result<(), Failure> {
    let none_has = |path: &Path, role: Role<'_>| none_has(domains, path, role);
    let answer = match &arguments.command {
        Command::Create(options) => {
            none_has(&options.image, Role::Layer)?;
            create::create(options)?
        }
        Command::Snapshot(options) => {
            none_has(&options.image, Role::Layer)?;
            let Some(minor) = options.minor else {
                return create::snapshot(options)?.print(arguments.json, out);
            };
            let name = under::name(&options.image, false)?;
            Hold { minor, image: &options.parent, raw: options.raw }
                .during(domains, || Ok((create::snapshot(options)?, Next::Made(name, options.image.clone()))))?
        }
        Command::Query(options) => query::query(options)?,
        Command::Check(options) => {
            return while_held(options.under, domains, &options.images[0], || {
                run_check(options, domains, arguments.json, out)
            });
        }
        Command::Repair { image, under } => while_held(*under, domains, image, || {
            none_has(image, Role::Leaf)?;
            repair::repair(image)
        })?,
        Command::Resize { image, size, under } => while_held(*under, domains, image, || {
            // Blocks may move, under whoever has an image above it.
            none_has(image, Role::Layer)?;
            resize::resize(image, *size)
        })?,
        Command::Coalesce { image, minor } => {
            let work = || {
                none_has(image, Role::Leaf)?;
                coalesce::coalesce(image, &|parent| none_has(parent, Role::Parent(image)))
            };
            match *minor {
                None => work()?.0,
                Some(minor) => Hold { minor, image, raw: false }.during(domains, || {
                    let (answer, parent, raw) = work()?;
                    Ok((answer, Next::On(under::name(&parent, raw)?)))
                })?,
            }
        }
        Command::Read { image, fields } => fields::read(image, fields)?,
        Command::Set { image, field, value, under } => while_held(*under, domains, image, || {
            none_has(image, Role::Leaf)?;
            fields::set(image, *field, value)
        })?,
        Command::Completions { .. } => Answer::default(),
    };
    answer.print(arguments.json, out)
}

/// Does work on an image, while the minor is held that has it open, if one is named.
fn while_held<T>(
    under: Under,
    domains: Option<&Target<'_>>,
    image: &Path,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    match under.minor {
        None => work(),
        Some(minor) => Hold { minor, image, raw: false }.during(domains, || Ok((work()?, Next::Same))),
    }
}

/// What a command has to say: lines for people, a value for programs.
#[derive(Default)]
struct Answer {
    text: String,
    json: Value,
}

impl Answer {
    fn new(text: impl Into<String>, json: Value) -> Answer {
        Answer { text: text.into(), json }
    }

    fn print(&self, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
        let printed = match (json, self.text.as_str()) {
            (true, _) => writeln!(out, "{:#}", self.json),
            (false, "") => Ok(()),
            (false, text) => writeln!(out, "{}", text.trim_end()),
        };
        printed.map_err(|error| Failure::new(Errno::IO, format_args!("standard output: {error}")))
    }
}

fn run_check(options: &Check, domains: Option<&Target<'_>>, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let access = if options.share { Access::Share } else { Access::Read };
    let how = Options { data: options.data, now: (!options.ignore_timestamps).then(now) };
    let (mut lines, mut values, mut failed) = (String::new(), Vec::new(), 0);
    for image in &options.images {
        let mut next = Some(image.clone());
        let mut below = 0;
        while let Some(path) = next.take() {
            if !options.share {
                none_has(domains, &path, Role::Leaf)?;
            }
            let store = FileStore::open(&path, access)?;
            let is_vhd = below == 0 || load(&store, store.info().sectors.saturating_sub(1), 1).is_ok_and(is_footer);
            if !is_vhd {
                // A raw parent has no rules.
                break;
            }
            let report = check(&store, how)?;
            let fine = if options.sound { report.is_sound() } else { report.is_clean() };
            failed += u32::from(!fine);
            report.findings.iter().for_each(|finding| lines += &format!("{}: {finding}\n", path.display()));
            if fine {
                lines += &format!("{}: valid\n", path.display());
            }
            let mut value = report.json();
            value["image"] = json!(path.display().to_string());
            values.push(value);
            below += 1;
            next = report
                .parent
                .filter(|_| options.chain && below <= drivers::format::vhd::open::DEPTH_MAX)
                .map(Into::into);
        }
    }
    Answer::new(lines, Value::Array(values)).print(json, out)?;
    match failed {
        0 => Ok(()),
        1 => Err(Failure::invalid("one image does not keep the rules")),
        more => Err(Failure::invalid(format_args!("{more} images do not keep the rules"))),
    }
}

fn is_footer(bytes: Vec<u8>) -> bool {
    bytes.first_chunk().is_some_and(|bytes| Footer::parse(bytes).is_ok())
}

/// Seconds since 2000.
fn now() -> u32 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(since_1970.saturating_sub(YEAR_2000)).unwrap_or(u32::MAX)
}

/// A number that no other image has.
fn new_id() -> Result<Id, Failure> {
    let mut id = Id::default();
    getrandom(&mut id, GetRandomFlags::empty())
        .map_err(|errno| Failure::new(errno, format_args!("random bytes: {errno}")))?;
    // RFC 9562, version 4.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Ok(id)
}

/// As blktap prints it.
fn show_id(id: &Id) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]].map(hex).join("-")
}

fn show_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Fixed => "fixed",
        Kind::Dynamic => "dynamic",
        Kind::Differencing => "differencing",
    }
}

/// Makes names in a folder durable; of devices there is nothing to do.
fn sync_folder(image: &Path) -> Result<(), Failure> {
    let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.starts_with("/dev") {
        return Ok(());
    }
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Failure::new(Errno::IO, format_args!("{}: {error}", folder.display())))
}
