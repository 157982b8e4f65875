//! Slips of a clumsy driver: keys that are half written, late, twice or changed while the backend looks at them, and
//! numbers of requests that are under way already. Nobody means harm by them.
//!
//! What must come of one is certain where the keys stand before the state says that they do: the disk is served. Where
//! they change after that, the backend may have looked at any moment: it serves what it found, or refuses with a text, and
//! a driver that then begins anew without a slip is served.

use std::collections::VecDeque;
use std::time::Duration;

use xen::port::{GrantRef, Instant, Port};

use crate::blkif::Layout;
use crate::frontend::{Frontend, Phase, Style};
use crate::hostile::rows::rows;
use crate::marks;
use crate::random::Random;

rows! {
    /// What goes wrong.
    Slip, "slip":
    Apart "keys in several writes, in no transaction",
    Twice "keys written twice, in any order",
    HalfThenWhole "half of a value, and the whole before the state",
    OldThenNew "keys of another ring, and the right ones before the state",
    Slow "long pauses between keys",
    StateTwice "states written twice",
    FeatureLate "a feature key after the state",
    FeatureChanged "a feature key changed after the state, again and again",
    FeatureOdd "a feature key of no meaning",
    Late "the state first, the keys after",
    Between "the state between the keys",
    HalfLate "half of a value, and the whole after the state",
    ChangedRing "ring-ref changed after the state",
    ChangedPort "event-channel changed after the state",
    ChangedOrder "ring-page-order changed after the state",
    ChangedProtocol "protocol changed after the state",
    SameId "an id used again while it is in flight",
}

impl Slip {
    /// Whether it has to be served all the same.
    pub fn is_harmless(self) -> bool {
        (self as usize) < Slip::Late as usize
    }

    /// One that is made when a ring is offered.
    pub fn any(random: &mut Random) -> Self {
        Slip::ALL[random.index(Slip::SameId as usize)]
    }
}

/// One thing to write, or not to.
enum Stroke {
    Put(String, String),
    State(u32),
    Pause(Duration),
}

/// What a driver has still to write of an offer, one thing at a time.
#[derive(Default)]
pub(super) struct Script {
    strokes: VecDeque<Stroke>,
    at: Instant,
}

impl Script {
    fn put(&mut self, keys: &[(String, String)]) {
        self.strokes.extend(keys.iter().map(|(key, value)| Stroke::Put(key.clone(), value.clone())));
    }

    fn state(&mut self) {
        self.strokes.push_back(Stroke::State(3));
    }

    fn pause(&mut self, random: &mut Random) {
        let pause = Duration::from_millis(random.pick(&[0, 0, 1, 700, 5_000]));
        self.strokes.push_back(Stroke::Pause(pause));
    }

    /// When it goes on; none if all is written.
    pub fn due(&self) -> Option<Instant> {
        (!self.strokes.is_empty()).then_some(self.at)
    }

    /// Nothing more of it is written.
    pub fn end(&mut self) {
        self.strokes.clear();
    }
}

/// What a slip names beside the right ring and the right port.
#[derive(Default)]
pub(super) struct Spare {
    pub grants: Vec<GrantRef>,
    pub port: Option<Port>,
}

type Keys = Vec<(String, String)>;

fn half(value: &str) -> String {
    value[..value.len() / 2].into()
}

fn find(keys: &Keys, wanted: impl Fn(&str) -> bool) -> usize {
    keys.iter().position(|(key, _)| wanted(key)).expect("every offer has it")
}

fn is_ring_ref(key: &str) -> bool {
    key.starts_with("ring-ref")
}

impl Frontend {
    /// Begins to offer these keys in the way of this slip.
    pub(super) fn slip(&mut self, slip: Slip, keys: Keys) {
        let mut script = Script::default();
        let random = &mut self.random.fork();
        match slip {
            Slip::Apart | Slip::StateTwice | Slip::SameId => script.put(&keys),
            Slip::Twice => {
                let mut twice = [keys.clone(), keys].concat();
                while !twice.is_empty() {
                    script.put(&[twice.swap_remove(random.index(twice.len()))]);
                }
            }
            Slip::HalfThenWhole => {
                script.put(&keys.iter().map(|(key, value)| (key.clone(), half(value))).collect::<Keys>());
                script.put(&keys);
            }
            Slip::OldThenNew => {
                let wrong = self.wrong(slip, &keys, random);
                script.put(&wrong);
                script.put(&keys);
            }
            Slip::Slow => keys.iter().for_each(|key| {
                script.put(std::slice::from_ref(key));
                script.strokes.push_back(Stroke::Pause(Duration::from_millis(random.below(800))));
            }),
            Slip::FeatureLate | Slip::FeatureChanged | Slip::FeatureOdd => {
                let (feature, others): (Keys, Keys) = keys.into_iter().partition(|(key, _)| key.starts_with("feature"));
                script.put(&others);
                self.offer_feature(slip, &feature, &mut script, random);
            }
            Slip::Late | Slip::Between => {
                let some = if slip == Slip::Late { 0 } else { random.between(1, keys.len() as u64 - 1) as usize };
                script.put(&keys[..some]);
                script.state();
                script.pause(random);
                script.put(&keys[some..]);
            }
            Slip::HalfLate => {
                let at = random.index(keys.len());
                let mut wrong = keys.clone();
                wrong[at].1 = half(&wrong[at].1);
                script.put(&wrong);
                script.state();
                script.pause(random);
                script.put(&keys[at..=at]);
            }
            Slip::ChangedRing | Slip::ChangedPort | Slip::ChangedOrder | Slip::ChangedProtocol => {
                let wrong = self.wrong(slip, &keys, random);
                script.put(if random.one_in(2) { &keys } else { &wrong });
                script.state();
                for _ in 0..random.between(1, 6) {
                    script.put(&wrong);
                    script.put(&keys);
                }
            }
        }
        if !script.strokes.iter().any(|stroke| matches!(stroke, Stroke::State(_))) {
            script.state();
        }
        if slip == Slip::StateTwice {
            script.state();
        }
        self.script = script;
        self.again.get_or_insert(Style::Linux);
        self.world.stir();
    }

    fn offer_feature(&mut self, slip: Slip, feature: &Keys, script: &mut Script, random: &mut Random) {
        let with = |value: &str| feature.iter().map(|(key, _)| (key.clone(), value.into())).collect::<Keys>();
        match slip {
            Slip::FeatureLate => {
                script.state();
                script.put(feature);
            }
            Slip::FeatureChanged => {
                script.put(feature);
                script.state();
                (0..random.between(1, 6)).for_each(|at| script.put(&with(if at % 2 == 0 { "0" } else { "1" })));
            }
            _ => script.put(&with(random.pick(&["", "2", "yes", "01", "-1", "18446744073709551616"]))),
        }
    }

    /// The keys of this slip as they are when they are wrong: those that name something else, and nothing but those.
    fn wrong(&mut self, slip: Slip, keys: &Keys, random: &mut Random) -> Keys {
        let of = |at: usize, value: String| (keys[at].0.clone(), value);
        let ring = || find(keys, is_ring_ref);
        let all = slip == Slip::OldThenNew;
        let mut wrong = Keys::new();
        if slip == Slip::ChangedRing || all {
            wrong.push(of(ring(), self.link_mut().spare_ring().0.to_string()));
        }
        if slip == Slip::ChangedPort || all {
            wrong.push(of(find(keys, |key| key == "event-channel"), self.link_mut().spare_port().0.to_string()));
        }
        if slip == Slip::ChangedOrder {
            let order = self.link_mut().grants.len().ilog2();
            let other = random.pick(&[0, 1, 2, 3, 4, 5]);
            wrong.push(("ring-page-order".into(), if other == order { "".into() } else { other.to_string() }));
        }
        if slip == Slip::ChangedProtocol || all {
            let other = random.pick(&["x86_64-abi", "x86_32-abi", "arm-abi", ""]);
            wrong.push(of(find(keys, |key| key == "protocol"), other.into()));
        }
        wrong
    }

    /// Writes the next thing, if it is time for one.
    pub(super) fn write_on(&mut self) -> bool {
        if !matches!(self.phase, Phase::Offered | Phase::Connected) || self.script.at > self.world.now() {
            return false;
        }
        match self.script.strokes.pop_front() {
            None => return false,
            Some(Stroke::Put(key, value)) => {
                let written = self.client.write(&format!("{}/{key}", self.dir), &value);
                // The toolstack may have taken the directory a moment ago; the watch will tell.
                let _gone = written.is_err();
            }
            // Who is connected and says 3 asks for another connection.
            Some(Stroke::State(_)) if self.phase == Phase::Connected => self.state(4),
            Some(Stroke::State(state)) => self.state(state),
            Some(Stroke::Pause(pause)) => self.script.at = self.world.now() + pause,
        }
        true
    }

    /// The backend refuses an offer, or somebody takes the disk away just now.
    pub(super) fn refused(&mut self) {
        self.tally.refused += 1;
        self.refusal = self.client.read(&format!("{}/hotplug-error", self.backend_dir)).ok();
    }

    /// Whether what the backend has connected to is what was meant in the end. Panics where it is nothing that was ever
    /// offered.
    pub(super) fn fits(&mut self) -> bool {
        let (world, guest) = (self.world.clone(), self.guest);
        let slip = self.slipped.take();
        let Some(link) = self.links.first_mut() else { return false };
        let mapped = |grants: &[GrantRef]| grants.iter().filter(|grant| world.in_use(guest, **grant)).count();
        let (right, wrong) = (mapped(&link.grants), mapped(&link.spare.grants));
        if !(right + wrong).is_power_of_two() || right + wrong > link.grants.len() {
            self.fail(&format!("{right} pages of the ring and {wrong} others are mapped"));
        }
        if !world.is_bound(guest, link.port) {
            let Some(port) = link.spare.port.filter(|port| world.is_bound(guest, *port)) else {
                self.fail("connected, and bound to none of the ports that were offered")
            };
            link.spare.port = Some(std::mem::replace(&mut link.port, port));
        } else if link.spare.port.is_some_and(|port| world.is_bound(guest, port)) {
            self.fail("bound to two ports");
        }
        // Without its key the protocol is one of 32 bits. In which layout requests would be read nobody can tell from outside.
        let layout_fits = match slip {
            Some(Slip::ChangedProtocol) => false,
            Some(Slip::Late | Slip::Between) => self.options.layout == Layout::X86_32,
            _ => true,
        };
        let fits = right == link.grants.len() && layout_fits;
        if let Some(slip) = slip {
            marks::hit(slip.mark());
        }
        fits
    }
}
