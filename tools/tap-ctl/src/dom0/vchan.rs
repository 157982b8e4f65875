//! A vchan to a domain as a blocking byte stream.
//!
//! A server offers a fresh page and port for each client, by two nodes in xenstore. Whoever binds the port first has
//! it; the others wait for the next offer. A client that went a moment ago leaves its page in the nodes until the server
//! has seen it: such a page can be connected to and leads nowhere. Therefore a connection begins with a question that
//! does no harm, PID, and is made anew if the server goes without having answered it.

use std::io::{Read, Write};
use std::ops::Deref;
use std::rc::Rc;
use std::time::{Duration, Instant};

use protocol::number;
use protocol::tapdisk::{Body, Dialect, MESSAGE_BYTES_MAX, Message};
use protocol::vchan::{Endpoint, GRANTS_MAX, Orders, Place, Rings};
use rustix::io::Errno;
use xen::page::{Page, Span};

use super::devices::{self, Events, Grants, Mapping};
use super::store::Store;
use super::stream::Stream;
use crate::failure::Failure;
use crate::line::{Channel, Line};

/// `cli_live` in the server's page, which the kernel clears when we die (`io/libxenvchan.h`).
const CLI_LIVE: u64 = 20;

/// A server that is there makes its next offer and answers PID within that time.
const CONNECT: Duration = Duration::from_secs(10);

/// What tells that a domain has ended; see docs/misc/xenstore.txt of Xen.
const RELEASED: &str = "@releaseDomain";

const _: () = assert!(GRANTS_MAX <= 2 * devices::GRANTS_MAX);

/// The way to a channel.
#[derive(Clone, Debug)]
pub struct Vchan {
    /// The server.
    pub domain: u16,
    /// Where it offers the channel, from the root.
    pub path: String,
    /// The dialect in which it answers PID; `None`: it answers nothing.
    pub greeting: Option<Dialect>,
}

impl Line for Vchan {
    fn open(&self, until: Option<Instant>) -> Result<Box<dyn Channel>, Failure> {
        let named = |why: Failure| why.while_doing(format!("connecting to {}", self.path));
        let mut store = Store::open()?;
        store.watch(&self.path, "offer")?;
        let limit = Instant::now() + CONNECT;
        let limit = until.map_or(limit, |until| until.min(limit));
        loop {
            let why = match self.attempt(&mut store, limit) {
                Ok(stream) => return self.hand_over(stream, store).map_err(named),
                Err(Attempt::Later(why)) => why,
                Err(Attempt::Never(why)) => return Err(named(why)),
            };
            if store.event(Some(limit))?.is_none() {
                return Err(named(why));
            }
        }
    }

    fn lasts(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        self.path.clone()
    }
}

/// A stream over pages of another domain.
type Connection = Stream<Mapped, Events>;

/// Why there is no connection.
enum Attempt {
    /// The next offer may do.
    Later(Failure),
    /// No offer will do.
    Never(Failure),
}

impl From<Failure> for Attempt {
    fn from(why: Failure) -> Attempt {
        Attempt::Never(why)
    }
}

impl Vchan {
    /// Takes the offer that is there now.
    fn attempt(&self, store: &mut Store, limit: Instant) -> Result<Connection, Attempt> {
        let later = |errno, text: &str| Attempt::Later(Failure::new(errno, text));
        let mut node = |name: &str| -> Result<u32, Attempt> {
            let value = store.read(&format!("{}/{name}", self.path))?;
            let value = value.ok_or_else(|| later(Errno::NOENT, "the domain offers no such channel"))?;
            // Clients of libxenvchan read 0 as none.
            number::u32(&value).filter(|number| *number != 0).ok_or_else(|| later(Errno::PROTO, "no offer"))
        };
        let (gref, port) = (node("ring-ref")?, node("event-channel")?);
        let events = Events::bind(self.domain, port).map_err(|why| match why.errno() {
            Errno::INVAL => later(Errno::BUSY, "others are connected, and it makes no further offer"),
            _ => Attempt::Later(why.while_doing("binding its event channel")),
        })?;
        let grants = Grants::open()?;
        let refused = |why: Errno| Attempt::Later(Failure::from(why).while_doing("mapping its pages"));
        let page = Rc::new(grants.map(self.domain, &[gref], true).map_err(refused)?);
        page.clear_at_end(CLI_LIVE, events.port()).map_err(refused)?;
        let page = Span(vec![Mapped { mapping: page, index: 0 }]);
        let nonsense = |_| Attempt::Never(Failure::new(Errno::PROTO, "its page has sizes that cannot be"));
        let orders = Orders::read(&page).map_err(nonsense)?;
        let grefs: Vec<u32> = (0..orders.grants()).map(|index| orders.grant(&page, index)).collect();
        let (left, right) = grefs.split_at(orders.left().pages());
        let ring = |place: Place, grefs: &[u32], writable| match place {
            Place::InPage(_) => Ok::<_, Attempt>(Span(page.0.clone())),
            Place::Pages(pages) => {
                let mapping = Rc::new(grants.map(self.domain, grefs, writable).map_err(refused)?);
                Ok(Span((0..pages).map(|index| Mapped { mapping: mapping.clone(), index }).collect()))
            }
        };
        let rings = Rings { left: ring(orders.left(), left, true)?, right: ring(orders.right(), right, false)? };
        let end = Endpoint::connect(page, rings, orders);
        let mut stream = Stream::new(end, events);
        stream.limit(Some(limit));
        stream.hello().map_err(|why| Attempt::Later(why.into()))?;
        self.greet(&mut stream)?;
        Ok(stream)
    }

    /// Asks who is there.
    fn greet(&self, stream: &mut Connection) -> Result<(), Attempt> {
        let Some(dialect) = self.greeting else { return Ok(()) };
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let asked = Message { cookie: 0, body: Body::Pid }.encode(dialect, &mut bytes);
        let asked = asked.map_err(|why| Failure::new(Errno::INVAL, why))?;
        let talked = stream.write_all(asked).and_then(|()| stream.read_exact(&mut bytes[..dialect.message_bytes()]));
        match talked.map_err(Failure::from) {
            Ok(()) => {}
            Err(why) if why.errno() == Errno::TIMEDOUT => {
                let text = format!("no answer to PID; is this a channel of {}'s dialect?", dialect.name());
                return Err(Failure::new(Errno::TIMEDOUT, text).into());
            }
            Err(why) => return Err(Attempt::Later(why.while_doing("asking who is there"))),
        }
        match Message::decode(dialect, &bytes[..dialect.message_bytes()]) {
            Ok(Message { body: Body::PidRsp(_), .. }) => Ok(()),
            _ => Err(Failure::new(Errno::PROTO, "PID was answered by something else").into()),
        }
    }

    /// From here on the store tells of the domain's end alone.
    fn hand_over(&self, mut stream: Connection, mut store: Store) -> Result<Box<dyn Channel>, Failure> {
        store.unwatch(&self.path, "offer")?;
        store.watch(RELEASED, "end")?;
        stream.end_with(store, self.domain);
        Ok(Box::new(stream))
    }
}

/// One page of a mapping.
#[derive(Clone)]
struct Mapped {
    mapping: Rc<Mapping>,
    index: usize,
}

impl Deref for Mapped {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.mapping.pages()[self.index]
    }
}
