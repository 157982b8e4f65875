//! What a hostile guest does of its own, one thing at a time.

use std::time::Duration;

use crate::blkif::{SEGMENTS_MAX, op};
use crate::hostile::asks::{Fields, Made, fits};
use crate::hostile::guest::{Flicker, Hostile, Later, Options, Phase, Place};
use crate::hostile::judge::judge;
use crate::hostile::keys::Outcome;
use crate::hostile::pages::Kind;
use crate::hostile::rows::{Ask, Change, Grant, Key, Load, Ring, Step};
use crate::marks;

/// Events of one storm.
const STORM: u32 = 200;
/// Writes of one storm on xenstore.
pub(super) const SPAM: u64 = 60;

impl Hostile {
    /// Does one thing, if it is time for one. True if it did.
    pub(super) fn act(&mut self) -> bool {
        if self.storm > 0 {
            self.storm -= 1;
            if let Some(link) = &self.link {
                link.ring.notify();
            }
            return true;
        }
        if self.now() < self.next_at {
            return false;
        }
        self.do_later();
        match self.phase.clone() {
            Phase::Saying(states) => self.say_next(states),
            Phase::Lingering(until) if self.now() >= until => self.leave(),
            Phase::Fresh | Phase::Connected if self.left == 0 => return self.finish(),
            Phase::Fresh if !self.begin() => {
                self.next_at = self.now() + Duration::from_millis(20);
                return false;
            }
            Phase::Fresh => {}
            Phase::Connected => {
                self.left -= 1;
                self.deed();
            }
            _ => return false,
        }
        self.pause();
        true
    }

    fn pause(&mut self) {
        let pause = self.random.pick(&[0, 0, 0, 0, 0, 1, 50, 1000, 20_000]);
        self.next_at = self.next_at.max(self.now() + Duration::from_micros(pause));
    }

    /// All is done: what is in flight is awaited, then it goes.
    fn finish(&mut self) -> bool {
        if self.link.as_ref().is_some_and(|link| !link.wild && link.book.in_flight() > 0) {
            if self.pages.is_switching() {
                self.switch_back();
            }
            return false;
        }
        self.leave();
        true
    }

    fn do_later(&mut self) {
        for later in std::mem::take(&mut self.later) {
            let Some(link) = &mut self.link else { return };
            let (Later::Revoke(id, grant) | Later::Reuse(id, grant) | Later::Balloon(id, grant)) = later else {
                self.switch_back();
                continue;
            };
            if !link.book.ids().contains(&id) {
                continue;
            }
            let mark = match later {
                Later::Balloon(..) => {
                    self.pages.balloon(grant);
                    Grant::Ballooned
                }
                Later::Reuse(..) => {
                    self.pages.revoke(grant);
                    let page = self.pages.page(&mut self.random);
                    self.pages.lend(page, Kind::Fine);
                    Grant::Reused
                }
                _ => {
                    self.pages.revoke(grant);
                    Grant::Revoked
                }
            };
            link.book.touched(Some(grant.0), &mut self.pages);
            link.book.mark(id, mark.mark());
        }
    }

    fn switch_back(&mut self) {
        self.pages.switch(false);
        if let Some(link) = &mut self.link {
            link.book.touched(None, &mut self.pages);
        }
    }

    /// The beginning of a connection, or something instead of it. False if it is not time for that.
    fn begin(&mut self) -> bool {
        let ready = self.back == Some(2);
        self.options.order = self.random.pick(&[0, 0, 0, 1, 2, 4]);
        self.options.start = match self.random.below(4) {
            0 => u32::MAX - self.random.below(40) as u32,
            1 => self.random.next() as u32,
            _ => 0,
        };
        let Options { keeper, hoards, crowd, .. } = self.options;
        self.options.keeps = keeper || hoards || self.random.one_in(2);
        let draw = if crowd || keeper || hoards { 15 } else { self.random.below(16) };
        if self.options.crowd {
            self.options.order = 4;
        }
        if draw > 3 && !ready {
            return false;
        }
        self.left -= 1;
        self.given_up &= !ready;
        match draw {
            0 => self.script(Step::Walk),
            1 => self.nonsense(),
            // Firmware does not wait to be asked.
            2 | 3 => {
                self.options.order = 0;
                let hopeful = ready || !self.given_up;
                self.offer(None, 4);
                if !hopeful && let Phase::Offered(_, since) = self.phase {
                    self.phase = Phase::Offered(Outcome::Whatever, since);
                }
                self.wrong = Some(if self.random.one_in(2) { Step::Ovmf.mark() } else { Step::MiniOs.mark() });
            }
            4..=8 => {
                let key = self.random.pick(Key::ALL);
                self.offer(Some(key).filter(|key| !matches!(key, Key::Rewritten | Key::RingRefIsData)), 3);
            }
            9 => self.overrun_before(),
            _ => {
                self.offer(None, 3);
                self.starve();
            }
        }
        true
    }

    /// More requests than slots, before the backend has ever looked.
    fn overrun_before(&mut self) {
        self.offer_silently();
        if let (Some(link), Phase::Offered(..)) = (&mut self.link, &self.phase) {
            link.ring.claim(link.start.wrapping_add(link.ring.slots + 1));
            self.phase = Phase::Offered(Outcome::Refused, self.now());
            self.wrong = Some(Ring::TooManyBefore.mark());
            self.say(3);
        }
    }

    fn offer_silently(&mut self) {
        // Still at 1 when the keys are written: nobody looks at the ring yet.
        self.offer(None, 1);
    }

    /// Xen has no maptrack entry left just now.
    fn starve(&mut self) {
        if self.options.alone && self.random.one_in(8) && matches!(self.phase, Phase::Offered(..)) {
            self.world.faults().allow_with(self.guest, crate::fault::Fault::Map);
            self.phase = Phase::Offered(Outcome::Refused, self.now());
            self.wrong = Some(Load::Maptrack.mark());
        }
    }

    /// The ring is filled with the largest requests.
    fn crowd(&mut self) {
        let room = self.room().min(64);
        for _ in 0..room {
            let made = self.kit().make(Ask::IndirectMost);
            self.put(made, None);
        }
        self.publish();
    }

    fn deed(&mut self) {
        if self.options.hoards {
            return self.hoard();
        }
        if self.options.crowd {
            return self.crowd();
        }
        // A guest of which one page cannot be kept has none kept from there on, and most of what else it does is of that kind.
        if self.is_keeping() && (self.options.keeper || self.random.one_in(2)) {
            self.keep();
            return self.publish();
        }
        match self.random.below(100) {
            0..50 => self.requests(),
            50..54 => {
                let made = self.kit().noise();
                self.put_if_room(made, Ring::Noise.mark());
            }
            54..67 => self.change(),
            67..79 => self.grants(),
            79..88 => self.ring(),
            88 => self.overrun(),
            89 => self.rewrite(),
            90 => self.spam(),
            91 => self.storm = STORM,
            92 => self.linger(),
            93 => self.abrupt(),
            94 => self.nonsense(),
            95 => self.script(Step::Walk),
            96 => self.script(Step::Flapping),
            97 => self.script(Step::MiniOs),
            _ => self.own_ring(),
        }
        self.publish();
        if self.storm > 0 {
            marks::hit(Load::Storm.mark());
        }
    }

    fn room(&self) -> u32 {
        self.link.as_ref().filter(|link| !link.wild).map_or(0, |link| link.ring.free())
    }

    pub(super) fn put_if_room(&mut self, made: Made, mark: &'static str) -> Option<(u32, u64)> {
        if self.room() == 0 {
            made.own.into_iter().for_each(|grant| self.pages.done_with(grant));
            return None;
        }
        Some(self.put(made, Some(mark)))
    }

    /// Some requests, honest ones and such that are nearly so.
    fn requests(&mut self) {
        for _ in 0..self.random.between(1, 6).min(self.room().into()) {
            if self.random.one_in(3) {
                let made = self.kit().honest();
                self.put(made, None);
                continue;
            }
            let (mut ask, abi) = (self.random.pick(Ask::ALL), self.options.abi);
            let shrunk = self.sectors_before > self.env.sectors_min;
            if shrunk && self.random.one_in(3) {
                ask = Ask::ShrunkAway;
            }
            if fits(ask, self.env.read_only, shrunk) {
                let made = self.kit().make(ask);
                self.put(made, Some(ask.mark(abi)));
            }
        }
    }

    /// Lets a byte flicker as long as the request is in flight.
    fn flicker_in(
        &mut self,
        made: Made,
        place: impl FnOnce(u32) -> Place,
        bytes: [u8; 2],
        other: Vec<u8>,
        row: Change,
    ) {
        let Some((index, id)) = self.put_if_room(made, row.mark()) else { return };
        let verdict = judge(&other, &self.env, &self.pages);
        let link = self.link.as_mut().expect("just used");
        link.book.amend(&verdict, &mut self.pages);
        self.flickers.push(Flicker { id, place: place(index), bytes });
    }

    /// Changes what is about to change.
    pub(super) fn flicker(&mut self) {
        let Some(link) = &mut self.link else { return };
        let alive = link.book.ids();
        self.flickers.retain_mut(|Flicker { id, place, bytes }| {
            if !alive.contains(id) {
                return false;
            }
            bytes.swap(0, 1);
            match place {
                Place::Slot(index, at) => {
                    let owed = index.wrapping_sub(link.ring.first_owed()) < link.ring.owed();
                    if owed {
                        link.ring.poke(*index, *at, bytes[0]);
                        if *at < 8 {
                            link.spoilt.insert(*index, *at);
                        }
                    }
                    owed
                }
                Place::Page(page, at) => {
                    self.pages.write(*page, *at, &bytes[..1]);
                    true
                }
            }
        });
    }

    /// Something that changes while it is read, or is two things at once.
    fn change(&mut self) {
        if self.room() == 0 {
            return;
        }
        let (row, fields) = (self.random.pick(Change::ALL), Fields::of(self.env.layout));
        let way = self.random.pick(&[op::READ, op::WRITE]);
        let count = self.random.between(1, SEGMENTS_MAX as u64) as usize;
        let mut segments = self.kit().segments(count);
        match row {
            // An answer may be there already, to whatever request, and its number is at these two bytes.
            Change::Operation | Change::Count => {
                let made = self.kit().transfer(way, segments);
                let at = usize::from(row == Change::Count);
                let to = match row {
                    Change::Count => self.random.pick(&[0, 1, 11, 12, 255]),
                    _ => self.random.pick(&[0, 1, 2, 3, 4, 5, 6, 255]),
                };
                let mut other = made.entry.clone();
                let was = std::mem::replace(&mut other[at], to);
                self.flicker_in(made, |index| Place::Slot(index, at), [was, to], other, row);
            }
            Change::Grant | Change::Sector => {
                let made = self.kit().transfer(way, segments);
                let at = match row {
                    Change::Grant => fields.tail + 8 * self.random.index(count),
                    _ => fields.sector + self.random.pick(&[0, 1, 7]),
                };
                let to = match row {
                    Change::Grant => self.random.pick(&self.stock).0 as u8,
                    _ => self.random.next() as u8,
                };
                let mut other = made.entry.clone();
                let was = std::mem::replace(&mut other[at], to);
                self.flicker_in(made, |index| Place::Slot(index, at), [was, to], other, row);
            }
            Change::TableGrant | Change::TableSectors => self.flicker_in_table(row, way),
            Change::Data => {
                let made = self.kit().transfer(op::WRITE, segments.clone());
                if let Some((_, id)) = self.put_if_room(made, row.mark()) {
                    let page = self.pages.under(segments[0].grant.0).expect("from the stock");
                    let bytes = [0x11, self.random.next() as u8];
                    self.flickers.push(Flicker { id, place: Place::Page(page, 4090), bytes });
                }
            }
            Change::TableIsData => {
                let made = self.kit().indirect(op::WRITE, &segments);
                let (table, page) = (made.own[0], self.pages.under(made.own[0].0).expect("just granted"));
                let at = 8 * self.random.index(count);
                self.pages.write(page, at, &table.0.to_le_bytes());
                self.put_if_room(made, row.mark());
            }
            Change::TwiceInOne => {
                segments.iter_mut().for_each(|segment| segment.grant = self.stock[0]);
                let made = self.kit().transfer(way, segments);
                self.put_if_room(made, row.mark());
            }
            Change::TwiceAtOnce => {
                for _ in 0..3 {
                    let mut segments = self.kit().segments(2);
                    segments.iter_mut().for_each(|segment| segment.grant = self.stock[1]);
                    let way = self.random.pick(&[op::READ, op::WRITE]);
                    let made = self.kit().transfer(way, segments);
                    self.put_if_room(made, row.mark());
                }
            }
            // These end the certainty of everything; they have a deed of their own.
            Change::TableIsRing | Change::DataIsRing => self.own_ring(),
        }
    }

    fn flicker_in_table(&mut self, row: Change, way: u8) {
        let count = self.random.between(1, 30) as usize;
        let segments = self.kit().segments(count);
        let at = 8 * self.random.index(count) + if row == Change::TableGrant { 0 } else { 5 };
        let made = self.kit().indirect(way, &segments);
        let page = self.pages.under(made.own[0].0).expect("just granted");
        let mut was = [0];
        protocol::mem::Memory::read(&**self.pages.at(page), at, &mut was);
        let to = match row {
            Change::TableGrant => self.random.pick(&self.stock).0 as u8,
            _ => self.random.pick(&[0, 7, 8, 255]),
        };
        let Some((_, id)) = self.put_if_room(made, row.mark()) else { return };
        self.pages.write(page, at, &[to]);
        let link = self.link.as_mut().expect("just used");
        let index = link.ring.prod.wrapping_sub(1);
        let verdict = judge(&link.ring.slot(index), &self.env, &self.pages);
        link.book.amend(&verdict, &mut self.pages);
        self.flickers.push(Flicker { id, place: Place::Page(page, at), bytes: [to, was[0]] });
    }

    /// The ring's own page as data or descriptors: nothing that comes of it is certain, but that nobody else is hurt.
    fn own_ring(&mut self) {
        if self.room() == 0 {
            return;
        }
        let ring = self.link.as_ref().expect("there is room").ring.grants[0];
        let row = self.random.pick(&[Change::TableIsRing, Change::DataIsRing]);
        let way = self.random.pick(&[op::READ, op::WRITE]);
        let mut segments = self.kit().segments(3);
        let fields = Fields::of(self.env.layout);
        let made = match row {
            Change::TableIsRing => {
                let mut made = self.kit().indirect(way, &segments);
                made.entry[fields.tables..fields.tables + 4].copy_from_slice(&ring.0.to_le_bytes());
                made
            }
            _ => {
                segments[1].grant = ring;
                marks::hit(Key::RingRefIsData.mark());
                self.kit().transfer(way, segments)
            }
        };
        self.put(made, None);
        marks::hit(row.mark());
        self.go_wild();
        self.phase = Phase::Lingering(self.now() + Duration::from_millis(5));
    }

    /// From now on no answer is certain, and every page of ours may be written to that the backend may write to.
    pub(super) fn go_wild(&mut self) {
        if let Some(link) = &mut self.link
            && !link.wild
        {
            link.wild = true;
            self.flickers.clear();
            link.book.anything(&mut self.pages);
        }
    }

    fn grants(&mut self) {
        if self.room() == 0 {
            return;
        }
        let row = self.random.pick(Grant::ALL);
        let way = if row == Grant::ReadOnly { op::READ } else { self.random.pick(&[op::READ, op::WRITE]) };
        let mut segments = self.kit().segments(3);
        let at = self.random.index(3);
        let huge = self.random.pick(&[u32::MAX, 32768, 1 << 24]);
        let named = match row {
            Grant::Bad | Grant::TableBad => xen::port::GrantRef(20_000),
            Grant::Huge => xen::port::GrantRef(huge),
            Grant::Other => self.odd.other,
            Grant::ReadOnly => self.odd.read_only,
            Grant::Mmio => self.odd.mmio,
            Grant::Foreign => self.odd.foreign,
            Grant::Ballooned if self.random.one_in(2) => self.odd.ballooned,
            Grant::Revoked | Grant::Reused | Grant::Ballooned | Grant::Version => {
                let page = self.pages.page(&mut self.random);
                self.kit().lend(page, Kind::Fine)
            }
        };
        let mut made = if row == Grant::TableBad {
            let mut made = self.kit().indirect(way, &segments);
            let at = Fields::of(self.env.layout).tables;
            made.entry[at..at + 4].copy_from_slice(&named.0.to_le_bytes());
            made
        } else {
            segments[at].grant = named;
            self.kit().transfer(way, segments)
        };
        if matches!(row, Grant::Revoked | Grant::Reused | Grant::Ballooned | Grant::Version)
            && named != self.odd.ballooned
        {
            made.own.push(named);
        }
        let now = !matches!(row, Grant::Revoked | Grant::Reused);
        let id = match now {
            true => self.put_if_room(made, row.mark()),
            // Shown only if it happens in time.
            false => Some(self.put(made, None)),
        };
        let Some((_, id)) = id else { return };
        match row {
            Grant::Revoked => self.later.push(Later::Revoke(id, named)),
            Grant::Reused => self.later.push(Later::Reuse(id, named)),
            Grant::Ballooned if named != self.odd.ballooned => self.later.push(Later::Balloon(id, named)),
            Grant::Version if self.options.alone => {
                self.pages.switch(true);
                self.link.as_mut().expect("there is room").book.touched(None, &mut self.pages);
                self.later.push(Later::SwitchBack);
            }
            _ => {}
        }
    }

    fn ring(&mut self) {
        let Some(link) = &mut self.link else { return };
        let (row, free) = (self.random.pick(Ring::ALL), link.ring.free());
        match row {
            Ring::AnswerEvent => {
                link.ring.answer_event(self.random.next() as u32);
                marks::hit(row.mark());
            }
            Ring::RequestEvent => {
                link.ring.request_event(self.random.next() as u32);
                marks::hit(row.mark());
            }
            Ring::FullThenStalls => {
                for _ in 0..free {
                    let made = self.kit().honest();
                    self.put(made, Some(row.mark()));
                }
                self.next_at = self.now() + Duration::from_millis(300);
            }
            Ring::OneId | Ring::LargestId | Ring::SameIdTwice => {
                let at = Fields::of(self.env.layout).id;
                let id = match row {
                    Ring::LargestId => u64::MAX,
                    _ => link.book.ids().first().copied().unwrap_or(7),
                };
                let all = if row == Ring::OneId { free } else { 2.min(free) };
                for _ in 0..all {
                    let mut made = self.kit().honest();
                    made.entry[at..at + 8].copy_from_slice(&id.to_le_bytes());
                    self.put(made, Some(row.mark()));
                }
            }
            Ring::Stale => {
                for _ in 0..self.random.between(1, 4).min(free.into()) {
                    let link = self.link.as_ref().expect("just seen");
                    let entry = link.ring.slot(link.ring.prod);
                    self.put(Made { entry, own: Vec::new() }, Some(row.mark()));
                }
            }
            Ring::Meanwhile => {
                // One at a time, each published alone: the backend finds the producer moved whenever it looks again.
                for _ in 0..self.random.between(2, 5).min(free.into()) {
                    let made = self.kit().honest();
                    self.put(made, Some(row.mark()));
                    self.publish();
                }
            }
            _ => {
                let made = self.kit().honest();
                self.put_if_room(made, Ring::Meanwhile.mark());
            }
        }
    }

    fn overrun(&mut self) {
        let Some(link) = self.link.as_mut().filter(|link| !link.wild) else { return };
        let row = self.random.pick(&[Ring::PastByOne, Ring::PastByHalf, Ring::Backwards]);
        // Behind the first request without an answer nothing can be taken, whatever was answered meanwhile.
        let prod = match row {
            Ring::PastByOne => link.ring.published().wrapping_add(link.ring.slots + 1),
            Ring::PastByHalf => link.ring.published().wrapping_add(1 << 31),
            _ => link.ring.first_owed().wrapping_sub(1 + self.random.below(1000) as u32),
        };
        link.wild = true;
        link.ring.claim(prod);
        link.book.anything(&mut self.pages);
        self.flickers.clear();
        self.wrong = Some(row.mark());
        self.phase = Phase::Doomed(self.now());
    }
}
