//! Does what the command line says.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;

use protocol::tapdisk::{Blkif, EVERY_MINOR, Flags, Grefs, Params, Poll, Text, Vdev};
use rustix::io::Errno;
use serde_json::json;

use crate::arguments::{Arguments, Command, Connect, Create, Disconnect, Image, List, Open, Unpause};
use crate::conversation::{Conversation, Vbd};
use crate::failure::Failure;
use crate::host::{Server, Target};
use crate::line::Line;
use crate::markers::Markers;
use crate::show::{self, Form, Row};
use crate::trace;

/// The longest key: AES-256 in XTS.
const KEY_BYTES_MAX: usize = 64;

/// Where commands act and print.
pub struct Desk<'a> {
    /// To whom they speak.
    pub target: Target<'a>,
    /// The minors that are set apart.
    pub markers: Markers,
    /// The form of what they print.
    pub form: Form,
    /// Where they print.
    pub out: &'a mut dyn Write,
    /// Where a key comes from.
    pub input: &'a mut dyn Read,
}

type Talk = Conversation<Box<dyn Line>>;

/// Does it. What serves and what watches is not done here.
pub fn run(arguments: &Arguments, desk: &mut Desk<'_>) -> Result<(), Failure> {
    let mut work = Work { arguments, desk };
    match &arguments.command {
        Command::List(list) => work.list(list),
        Command::Allocate(_) => work.allocate(),
        Command::Free(which) => work.free(which.minor),
        Command::Spawn(_) => work.spawn(),
        Command::Attach(which) => work.minor(which.minor, |talk| talk.attach(which.minor)),
        Command::Detach(which) => work.minor(which.minor, |talk| talk.detach(which.minor)),
        Command::Open(open) => work.open(open),
        Command::Close(close) => {
            let limit = close.timeout.map(Duration::from_secs);
            work.minor(close.which.minor, |talk| talk.close(close.which.minor, close.force, limit))
        }
        Command::Create(create) => work.create(create),
        Command::Destroy(hold) => work.destroy(hold.which.minor, hold.limit()),
        Command::Pause(hold) => work.minor(hold.which.minor, |talk| talk.pause(hold.which.minor, hold.limit())),
        Command::Unpause(unpause) => work.unpause(unpause),
        Command::Stats(which) => {
            let json = work.minor(which.minor, |talk| talk.stats(which.minor))?;
            work.print(show::stats(work.desk.form, &json))
        }
        Command::Info(which) => {
            let image = work.minor(which.minor, |talk| talk.info(which.minor))?;
            work.print(show::image(work.desk.form, image))
        }
        Command::Connect(connect) => work.connect(connect),
        Command::Disconnect(disconnect) => work.disconnect(disconnect),
        Command::Shutdown(shutdown) => {
            let limit = shutdown.timeout.map(Duration::from_secs);
            let (title, mut talk) = work.talk()?;
            talk.exit(limit).map_err(|why| why.while_doing(title))
        }
        Command::Trace(trace) => trace::follow(arguments, trace, work.desk),
        Command::Xenio(_) | Command::Serve | Command::Completions { .. } => Err(Errno::NOSYS.into()),
    }
}

struct Work<'a, 'b> {
    arguments: &'a Arguments,
    desk: &'a mut Desk<'b>,
}

impl Work<'_, '_> {
    fn print(&mut self, text: String) -> Result<(), Failure> {
        print(self.desk.out, &text)
    }

    /// A conversation with the server that is meant, and how texts name it.
    fn talk(&self) -> Result<(String, Talk), Failure> {
        let server = self.desk.target.one(self.arguments.pid())?;
        let title = server.title.clone();
        Ok((title, self.checked(server)?))
    }

    fn checked(&self, server: Server) -> Result<Talk, Failure> {
        let title = server.title.clone();
        let mut talk = self.conversation(server);
        // A socket is what was asked for; that it is the process which was asked for has to be seen.
        if let (Target::Socket(_), Some(pid)) = (&self.desk.target, self.arguments.pid()) {
            let found = talk.pid().map_err(|why| why.while_doing(&title))?;
            if i64::from(found) != i64::from(pid) {
                return Err(Failure::new(Errno::INVAL, format!("{title}: this is {found}, not {pid}")));
            }
        }
        Ok(talk)
    }

    fn conversation(&self, server: Server) -> Talk {
        Conversation::new(server.line, self.arguments.dialect(), self.arguments.debug)
    }

    /// Does something about one VBD of the server that is meant.
    fn minor<T>(&self, minor: u16, act: impl FnOnce(&mut Talk) -> Result<T, Failure>) -> Result<T, Failure> {
        let (title, mut talk) = self.talk()?;
        act(&mut talk).map_err(|why| why.while_doing(format!("{title}, minor {minor}")))
    }

    fn list(&mut self, list: &List) -> Result<(), Failure> {
        let servers = self.desk.target.all(list.pid)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        for server in servers {
            let title = server.title.clone();
            // One that does not answer hides no other.
            match self.rows(server) {
                Ok(more) => rows.extend(more),
                Err(why) => {
                    let why = why.while_doing(title);
                    failed = Some(failed.map_or(why.clone(), |before: Failure| before.while_doing(why)));
                }
            }
        }
        if list.pid.is_none() && !self.desk.target.is_named() {
            let used: BTreeSet<u16> = rows.iter().filter_map(Row::minor).collect();
            let orphans = self.desk.markers.list().into_iter().filter(|minor| !used.contains(minor));
            rows.extend(orphans.map(|minor| Row { pid: None, vbd: None, reserved: Some(minor) }));
        }
        rows.retain(|row| {
            let (kind, file) = row.image().unzip();
            list.minor.is_none_or(|minor| row.minor() == Some(minor))
                && kind.is_none_or(|kind| list.kind.as_deref().is_none_or(|wanted| wanted == kind))
                && file.is_none_or(|file| list.file.as_deref().is_none_or(|wanted| wanted == file))
        });
        self.print(show::list(self.desk.form, &rows))?;
        failed.map_or(Ok(()), Err)
    }

    fn rows(&self, server: Server) -> Result<Vec<Row>, Failure> {
        let id = server.id;
        let mut talk = self.conversation(server);
        let pid = id.map_or_else(|| talk.pid(), Ok)?;
        let vbds = talk.list(EVERY_MINOR)?;
        if vbds.is_empty() {
            return Ok(vec![Row { pid: Some(pid), vbd: None, reserved: None }]);
        }
        Ok(vbds.into_iter().map(|vbd| Row { pid: Some(pid), vbd: Some(vbd), reserved: None }).collect())
    }

    /// The minors that storage domains have.
    fn used(&self) -> Result<BTreeSet<u16>, Failure> {
        let mut used = BTreeSet::new();
        for server in self.desk.target.all(None)? {
            let title = server.title.clone();
            let vbds = self.conversation(server).list(EVERY_MINOR).map_err(|why| why.while_doing(title))?;
            used.extend(minors(&vbds));
        }
        Ok(used)
    }

    fn allocate(&mut self) -> Result<(), Failure> {
        let used = self.used()?;
        let minor = self.desk.markers.allocate(|minor| used.contains(&minor))?;
        self.print_marker(None, minor)
    }

    fn free(&mut self, minor: u16) -> Result<(), Failure> {
        if self.used()?.contains(&minor) {
            return Err(Failure::new(Errno::AGAIN, format!("minor {minor} is in use: detach it first")));
        }
        self.desk.markers.free(minor)
    }

    fn spawn(&mut self) -> Result<(), Failure> {
        let server = self.desk.target.one(None)?;
        let (id, title) = (server.id, server.title.clone());
        let mut talk = self.conversation(server);
        let pid = match id {
            Some(id) => id,
            None => talk.pid().map_err(|why| why.while_doing(&title))?,
        };
        let text = match self.desk.form {
            Form::Lines => format!("{pid}\n"),
            Form::Table => format!("{title} is there: nothing to spawn, its number is {pid}\n"),
            Form::Json => format!("{}\n", json!({ "pid": pid })),
        };
        self.print(text)
    }

    fn open(&mut self, open: &Open) -> Result<(), Failure> {
        let key = if open.encrypted { Some(read_key(self.desk.input)?) } else { None };
        let (mut params, log) = params(&open.image)?;
        if key.is_some() {
            params.flags = params.flags | Flags::OPEN_ENCRYPTED;
        }
        self.minor(open.which.minor, |talk| talk.open(open.which.minor, params, log, key.as_deref())).map(drop)
    }

    fn create(&mut self, create: &Create) -> Result<(), Failure> {
        let (params, log) = params(&create.image)?;
        let server = self.desk.target.one(None)?;
        let (title, id) = (server.title.clone(), server.id);
        let mut talk = self.conversation(server);
        let vbds = talk.list(EVERY_MINOR).map_err(|why| why.while_doing(&title))?;
        let mut used: BTreeSet<u16> = minors(&vbds).collect();
        let minor = loop {
            let minor = self.desk.markers.allocate(|minor| used.contains(&minor))?;
            let why = match talk.attach(minor) {
                Ok(()) => break minor,
                Err(why) => why,
            };
            self.desk.markers.free(minor)?;
            // The domain gave it to another disk since.
            if why.errno() != Errno::EXIST || !used.insert(minor) {
                return Err(why.while_doing(format!("{title}, minor {minor}")));
            }
        };
        if let Err(why) = talk.open(minor, params, log, None) {
            let why = why.while_doing(format!("{title}, minor {minor}"));
            // What was made on the way goes; if it cannot, that is told too.
            let undone = talk.detach(minor).and_then(|()| self.desk.markers.free(minor));
            return Err(match undone {
                Ok(()) => why,
                Err(also) => Failure::new(why.errno(), format!("{why}; and it is still attached: {also}")),
            });
        }
        self.print_marker(id, minor)
    }

    fn destroy(&mut self, minor: u16, limit: Option<Duration>) -> Result<(), Failure> {
        self.minor(minor, |talk| talk.close(minor, false, limit).and_then(|()| talk.detach(minor)))?;
        match self.desk.markers.free(minor) {
            // Attached without having been set apart.
            Err(why) if why.errno() == Errno::NOENT => Ok(()),
            freed => freed,
        }
    }

    fn unpause(&mut self, unpause: &Unpause) -> Result<(), Failure> {
        let mut params = Params::default();
        if let Some(path) = &unpause.path {
            params.path = text("image", path)?;
        }
        if let Some(secondary) = &unpause.secondary {
            params.secondary = text("secondary image", secondary)?;
            params.flags = params.flags | Flags::SECONDARY;
        }
        let log = unpause.log.as_ref().map(|log| text("log", log)).transpose()?;
        if log.is_some() {
            params.flags = params.flags | Flags::ADD_LOG;
        }
        self.minor(unpause.which.minor, |talk| talk.resume(unpause.which.minor, params, log))
    }

    fn connect(&mut self, connect: &Connect) -> Result<(), Failure> {
        let wrong = || Failure::new(Errno::INVAL, "--grefs: a ring has 1, 2, 4 or 8 pages");
        let blkif = Blkif {
            vdev: Vdev { domid: connect.ring.domid, devid: connect.ring.devid },
            grefs: Grefs::new(&connect.grefs).ok_or_else(wrong)?,
            proto: connect.proto.into(),
            pool: text("pool", &connect.pool)?,
            port: connect.port,
            poll: Poll { duration: connect.poll_duration, idle_threshold: connect.poll_idle_threshold },
        };
        self.minor(connect.which.minor, |talk| talk.connect(connect.which.minor, blkif))
    }

    fn disconnect(&mut self, disconnect: &Disconnect) -> Result<(), Failure> {
        let (title, mut talk) = self.talk()?;
        let vdev = Vdev { domid: disconnect.ring.domid, devid: disconnect.ring.devid };
        let limit = disconnect.timeout.map(Duration::from_secs);
        // The cookie says nothing here, and blktap's clients leave it 0.
        let asked = talk.disconnect(0, vdev, limit);
        asked.map_err(|why| why.while_doing(format!("{title}, device {} of guest {}", vdev.devid, vdev.domid)))
    }

    fn print_marker(&mut self, pid: Option<i32>, minor: u16) -> Result<(), Failure> {
        let path = self.desk.markers.path(minor).display().to_string();
        let text = match (self.desk.form, pid) {
            (Form::Json, Some(pid)) => json!({ "pid": pid, "minor": minor, "marker": path }).to_string(),
            (Form::Json, None) => json!({ "minor": minor, "marker": path }).to_string(),
            _ => path,
        };
        self.print(text + "\n")
    }
}

/// Prints; that nobody reads any more is no failure of the command.
pub fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|why| Failure::from(why).while_doing("printing")),
    }
}

fn minors(vbds: &[Vbd]) -> impl Iterator<Item = u16> {
    vbds.iter().map(|vbd| vbd.minor)
}

/// A text that has to fit a message.
fn text<'a>(what: &str, text: &'a str) -> Result<Text<'a>, Failure> {
    let too_long = || Failure::new(Errno::NAMETOOLONG, format!("{what}: longer than the 255 bytes that a message has"));
    Text::new(text).ok_or_else(too_long)
}

/// What OPEN says, and the log's path that goes after it.
fn params(image: &Image) -> Result<(Params<'_>, Option<Text<'_>>), Failure> {
    let mut flags = Flags::NONE;
    let switches = [
        (image.read_only, Flags::RDONLY),
        (image.no_o_direct, Flags::NO_O_DIRECT),
        (image.lcache, Flags::ADD_LCACHE),
        (image.parent.is_some(), Flags::REUSE_PRT),
        (image.secondary.is_some(), Flags::SECONDARY),
        (image.standby, Flags::STANDBY),
        (image.log.is_some(), Flags::ADD_LOG),
    ];
    for (_, flag) in switches.into_iter().filter(|(on, _)| *on) {
        flags = flags | flag;
    }
    let params = Params {
        flags,
        path: text("image", &image.path)?,
        prt_devnum: image.parent.map(u32::from),
        req_timeout: image.timeout.unwrap_or(0),
        secondary: text("secondary image", image.secondary.as_deref().unwrap_or_default())?,
        ..Params::default()
    };
    Ok((params, image.log.as_ref().map(|log| text("log", log)).transpose()?))
}

/// A key, to the end of the input. One byte more than the longest is read, so that a longer one is seen.
fn read_key(input: &mut dyn Read) -> Result<Vec<u8>, Failure> {
    let mut key = Vec::new();
    let read = input.take(KEY_BYTES_MAX as u64 + 1).read_to_end(&mut key);
    read.map_err(|why| Failure::from(why).while_doing("reading the key"))?;
    match key.len() {
        32 | 64 => Ok(key),
        bytes => {
            let more = if bytes > KEY_BYTES_MAX { "more than " } else { "" };
            let bytes = bytes.min(KEY_BYTES_MAX);
            Err(Failure::new(Errno::INVAL, format!("the key has {more}{bytes} bytes instead of 32 or 64")))
        }
    }
}
