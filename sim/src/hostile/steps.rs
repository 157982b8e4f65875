//! What a hostile guest does with states and nodes.

use std::collections::VecDeque;
use std::time::Duration;

use crate::blkif::op;
use crate::hostile::deeds::SPAM;
use crate::hostile::guest::{Hostile, Phase};
use crate::hostile::pages::Kind;
use crate::hostile::rows::{Key, Step};
use crate::marks;

impl Hostile {
    /// Says states as a script has them, whatever the backend says.
    pub(super) fn script(&mut self, step: Step) {
        let states: VecDeque<u8> = match step {
            Step::Flapping => [6, 3].repeat(self.random.between(1, 4) as usize).into(),
            Step::MiniOs => [5, 6, 1].into(),
            _ => (0..self.random.between(6, 24)).map(|_| self.random.below(9) as u8).collect(),
        };
        if step == Step::Flapping {
            let count = self.link.as_ref().map_or(0, |link| link.ring.free().min(4));
            for _ in 0..count {
                let made = self.kit().honest();
                self.put(made, None);
            }
            self.publish();
        }
        marks::hit(step.mark());
        self.go_wild();
        self.given_up = true;
        self.phase = Phase::Saying(states);
    }

    pub(super) fn say_next(&mut self, mut states: VecDeque<u8>) {
        match states.pop_front() {
            Some(state) => {
                self.phase = Phase::Saying(states);
                self.say(state);
            }
            None => self.leave(),
        }
    }

    /// Says 5 and does not go on, with requests in flight and more to come.
    pub(super) fn linger(&mut self) {
        self.go_wild();
        self.say(5);
        marks::hit(Step::NeverCloses.mark());
        let long = self.random.pick(&[10, 700, 12_000]);
        self.phase = Phase::Lingering(self.now() + Duration::from_millis(long));
    }

    /// A state that is none, or none that can be read.
    pub(super) fn nonsense(&mut self) {
        self.go_wild();
        let step = self.random.pick(&[
            Step::NoDirectory,
            Step::NoState,
            Step::Hidden,
            Step::Word,
            Step::Empty,
            Step::Long,
            Step::TooLong,
        ]);
        let state = format!("{}/state", self.dir);
        let done = match step {
            Step::NoDirectory if self.left > 4 => Ok(()),
            Step::NoDirectory => self.client.remove(&self.dir),
            Step::NoState => self.client.remove(&state),
            Step::Hidden => self.client.permit(&state, &[&format!("n{}", self.guest.0)]),
            Step::Word => self.client.write(&state, "abc"),
            Step::Empty => self.client.write(&state, ""),
            Step::Long => self.client.write(&state, &"4".repeat(2048)),
            _ => match self.client.write(&state, &"4".repeat(10_240)) {
                Err(_) => Ok(()),
                Ok(()) => self.fail("xenstored took a node of 10 KB"),
            },
        };
        if done.is_ok() && !(step == Step::NoDirectory && self.left > 4) {
            marks::hit(step.mark());
        }
        self.phase = Phase::Lingering(self.now() + Duration::from_millis(self.random.pick(&[1, 30, 900])));
    }

    /// Other keys under a connection that stands.
    pub(super) fn rewrite(&mut self) {
        let key = self.random.pick(&["ring-ref", "ring-ref0", "event-channel", "protocol", "ring-page-order"]);
        let value = self.random.pick(&["9", "4294967295", "abc", "", "x86_64-abi"]);
        if self.client.write(&format!("{}/{key}", self.dir), value).is_ok() {
            marks::hit(Key::Rewritten.mark());
        }
    }

    /// A storm of writes where the backend watches, and where nobody does.
    pub(super) fn spam(&mut self) {
        for i in 0..SPAM {
            let node = match i % 4 {
                0 => "data/spam".into(),
                n => format!("{}/spam{n}", self.dir),
            };
            let _full = self.client.write(&node, &i.to_string());
        }
        marks::hit(Step::Spam.mark());
    }

    /// Goes with reads in flight, and uses their pages for other things at once.
    pub(super) fn abrupt(&mut self) {
        let count = self.link.as_ref().map_or(0, |link| link.ring.free().min(6));
        let mut used = Vec::new();
        for _ in 0..count {
            let page = self.pages.page(&mut self.random);
            let grant = self.kit().lend(page, Kind::Fine);
            let mut segments = self.kit().segments(2);
            segments[0].grant = grant;
            let mut made = self.kit().transfer(op::READ, segments);
            made.own.push(grant);
            self.put(made, None);
            used.push(grant);
        }
        self.publish();
        if !used.is_empty() {
            marks::hit(Step::AbruptEnd.mark());
        }
        self.leave();
        for grant in used {
            self.pages.revoke(grant);
            let page = self.pages.page(&mut self.random);
            self.kit().lend(page, Kind::Fine);
        }
    }
}
