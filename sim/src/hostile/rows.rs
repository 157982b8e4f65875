//! What a hostile frontend does, one row for each; docs/hostile.md has the same rows with what the product makes of them.

/// A closed set of rows, each with the name of its mark.
macro_rules! rows {
    ($(#[$about:meta])* $set:ident, $group:literal: $($row:ident $name:literal,)*) => {
        $(#[$about])*
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $set { $($row,)* }

        impl $set {
            /// All of them.
            pub const ALL: &[$set] = &[$($set::$row,)*];
            /// The names of their marks, in the same order.
            pub const MARKS: &[&str] = &[$(concat!($group, ": ", $name),)*];

            /// The name of its mark.
            pub fn mark(self) -> &'static str {
                Self::MARKS[self as usize]
            }
        }
    };
}

pub(crate) use rows;

/// The same for requests, which are made by guests of every layout: a mark for each.
macro_rules! asks {
    ($($row:ident $name:literal,)*) => {
        /// One request that breaks one rule, or goes to the very edge of one.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Ask { $($row,)* }

        impl Ask {
            /// All of them.
            pub const ALL: &[Ask] = &[$(Ask::$row,)*];
            /// The names of their marks by [`Abi`], in the same order.
            pub const MARKS: [&[&str]; 3] = [
                &[$(concat!("request x86_64: ", $name),)*],
                &[$(concat!("request x86_32: ", $name),)*],
                &[$(concat!("request without protocol: ", $name),)*],
            ];

            /// The name of its mark for a guest that says its layout like this.
            pub fn mark(self, abi: Abi) -> &'static str {
                Ask::MARKS[abi as usize][self as usize]
            }
        }
    };
}

/// How a guest says its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_64-abi`.
    Wide,
    /// `x86_32-abi`.
    Narrow,
    /// It does not, which means 32 bits to every backend but FreeBSD's.
    Unsaid,
}

rows! {
    /// What is done to the ring's indices, and to the numbers of requests.
    Ring, "ring":
    PastByOne "the producer jumps a slot further than the ring holds",
    PastByHalf "the producer jumps by 2^31",
    Backwards "the producer goes backwards",
    Meanwhile "the producer moves while requests are taken",
    Wraps "the indices wrap at 2^32",
    AnswersBefore "connected with a response producer that is not 0",
    TooManyBefore "connected with more requests than slots",
    AnswerEvent "nonsense in rsp_event",
    RequestEvent "nonsense in req_event",
    FullThenStalls "the ring is filled, then the producer stalls",
    OneId "all slots carry one id",
    LargestId "the id is the largest",
    SameIdTwice "an id is used again while it is in flight",
    Stale "slots are published that were not written",
    Noise "a slot of noise",
}

asks! {
    Operation4 "operation 4",
    Operation7 "operation 7",
    Operation255 "operation 255",
    ReadNone "a read of no segments",
    WriteNone "a write of no segments",
    Segments12 "12 segments",
    Segments255 "255 segments",
    Indirect0 "indirect, no segments",
    Indirect1 "indirect, one segment",
    Indirect12 "indirect, 12 segments",
    IndirectMost "indirect, as many segments as offered",
    IndirectMore "indirect, one segment more than offered",
    Indirect65535 "indirect, 65535 segments",
    Inner2 "indirect barrier",
    Inner3 "indirect flush",
    Inner5 "indirect discard",
    Inner6 "indirect in indirect",
    Inner255 "indirect operation 255",
    Handle "another device's handle",
    FirstPastLast "first sector after the last",
    Last8 "last sector 8",
    LastMore "last sector 9 to 255",
    IndirectLast8 "last sector 8 in a descriptor page",
    SectorOverflows "sector and length overflow 64 bits",
    BytesOverflow "sector times 512 overflows 64 bits",
    AtEnd "ends with the disk",
    PastEnd "ends one sector past the disk",
    ShrunkAway "a sector that the disk had before it shrank",
    Misaligned "not aligned to 4096",
    Discard0 "discard of nothing",
    DiscardMost "discard of 2^64-1 sectors",
    DiscardWraps "discard that wraps",
    DiscardPastEnd "discard past the end",
    DiscardReadOnly "discard on a read-only disk",
    DiscardMisaligned "discard not aligned to the granularity",
    DiscardSecure "secure discard, which was not offered",
    BarrierData "barrier with data",
    BarrierBare "barrier without data",
    BarrierReadOnly "barrier with data on a read-only disk",
    FlushReadOnly "flush with data on a read-only disk",
    WriteReadOnly "write to a read-only disk",
    IndirectReadOnly "indirect write to a read-only disk",
}

rows! {
    /// What changes while it is used, and what is two things at once.
    Change, "change":
    Operation "the operation of a published slot",
    Count "the number of segments of a published slot",
    Grant "a grant of a published slot",
    Sector "the sector of a published slot",
    TableGrant "a grant in a descriptor page",
    TableSectors "the sectors in a descriptor page",
    Data "the data of a write",
    TableIsRing "the descriptor page is the ring",
    TableIsData "the descriptor page is a data page too",
    TwiceInOne "a grant in several segments of one request",
    TwiceAtOnce "a grant in several requests at once",
    DataIsRing "a data page is the ring",
}

rows! {
    /// Grants that are not what they should be.
    Grant, "grant":
    Bad "a reference that is not granted",
    Huge "a reference past the table",
    Other "a page granted to another domain",
    ReadOnly "a read into a page that was granted for reading",
    Revoked "revoked between request and copy",
    Reused "revoked and given another page between request and copy",
    Ballooned "a page that was ballooned out",
    Mmio "a page of MMIO",
    Foreign "a page of a third domain",
    Version "the table changes its version",
    TableBad "a descriptor page that is not granted",
}

rows! {
    /// What is done about pages that stay mapped from one request to the next.
    Keep, "kept":
    Stays "used again and again under one reference",
    Revoked "access ended while the page is mapped",
    Reused "the reference given another page while the old one is mapped",
    Ballooned "ballooned out while mapped",
    ReadOnly "granted for reading only",
    TwiceInOne "one reference in several segments of a request",
    TwoReferences "one page under two references",
    Table "a descriptor page that stays mapped and is written over",
    RingFull "more references than a ring may keep",
    AllFull "more references than all rings may keep",
    Disconnected "disconnected with pages mapped",
    Died "died with pages mapped",
}

rows! {
    /// Keys that are offered.
    Key, "key":
    RingRefBad "ring-ref is not granted",
    RingRefReadOnly "ring-ref was granted for reading",
    RingRefTwice "two ring-refs are one",
    RingRefIsData "ring-ref is a data page",
    RingRefText "ring-ref is no number",
    RingRefNegative "ring-ref is negative",
    RingRefOverflows "ring-ref overflows",
    RingRefEmpty "ring-ref is empty",
    RingRefMissing "ring-ref is missing",
    RingRefNMissing "a ring-refN is missing",
    Order5 "ring-page-order 5",
    OrderMost "ring-page-order 4294967295",
    Queues0 "0 queues",
    Queues1 "1 queue",
    Queues2 "more queues than offered",
    QueuesWild "a second ring of any content",
    QueuesBad "a second ring that is not granted",
    QueueNMissing "queues without their directories",
    PortOther "event-channel of somebody else",
    Port0 "event-channel 0",
    PortText "event-channel is no number",
    PortMissing "event-channel is missing",
    PortClosed "event-channel closed right after",
    ProtocolNative "protocol native",
    ProtocolUnknown "protocol unknown",
    Hidden "a key that may not be read",
    Rewritten "keys rewritten after Connected",
}

rows! {
    /// What is done with states and nodes.
    Step, "state":
    Walk "a random walk",
    Flapping "3, 6, 3 with requests in flight",
    NeverCloses "5, and never 6",
    NoDirectory "its own directory deleted",
    NoState "its own state deleted",
    Hidden "its state may not be read",
    Word "state abc",
    Empty "state empty",
    Long "a state as long as a node may be",
    TooLong "a state of 10 KB, which xenstored refuses",
    Ovmf "1 to 4 at once, as OVMF, then closed in order",
    MiniOs "4 at once, closed by 5, 6, 1 without waiting, as mini-os",
    Spam "a storm of writes to xenstore",
    AbruptEnd "disconnected with reads in flight, pages used for other things at once",
    Destroyed "destroyed with requests in flight",
    NumberReused "another guest under the number of a destroyed one",
}

rows! {
    /// Too much of everything.
    Load, "load":
    Crowd "every disk at the largest ring, full of the largest requests",
    Maptrack "no maptrack entry left at connecting",
    SlowStore "a slow store below",
    StuckStore "a stuck store below",
    FailingStore "a failing store below",
    Storm "a storm of events without requests",
}

/// Digits of a pair of states, for the marks of walks.
macro_rules! pairs {
    ($($from:literal)*) => { &[$(pairs!(@ $from: 0 1 2 3 4 5 6 7 8),)*] };
    (@ $from:literal: $($to:literal)*) => { [$(concat!("state: ", $from, " then ", $to),)*] };
}

/// The marks of every pair of states, one after the other.
pub const PAIRS: &[[&str; 9]; 9] = pairs!(0 1 2 3 4 5 6 7 8);
