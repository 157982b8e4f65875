//! One disk: what to do next, given what its nodes say now. Nothing is done here.

use protocol::blkif::keys;
use protocol::number;
use protocol::tapdisk::Vdev;
use protocol::xenbus::{Back, Do, Phase, Seen, State};
use rustix::io::Errno;

use super::keys::{self as disk, Named, Nodes, Ring};
use crate::failure::Failure;

/// A guest's disk.
#[derive(Debug)]
pub struct Disk {
    /// Whose, and which.
    pub vdev: Vdev,
    /// How far the handshake is.
    pub back: Back,
    /// The storage domain and the minor whose ring is connected, as far as we know.
    pub served: Option<(u16, u16)>,
}

/// What its nodes say at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The backend's directory; empty if it is gone.
    pub back: Nodes,
    /// The frontend's; empty if it is gone or cannot be read.
    pub front: Nodes,
}

/// The one thing to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Wait for the next change.
    Nothing,
    /// Say what is offered, then InitWait.
    Publish(Named),
    /// Have the ring served, say the disk's properties, then Connected. The domain to which the guest has granted its
    /// ring is in it, to be compared.
    Connect(Named, Ring, Option<u16>),
    /// Have the ring let go, and look again.
    LetGo,
    /// Say Closing.
    AnswerClosing,
    /// Have the ring let go, then say Closed.
    Close,
    /// As `Close`, and forget the disk; its directory is the toolstack's.
    Leave,
    /// Have the ring let go and forget the disk: the directory is gone.
    Forget,
    /// Say why not, and close.
    Refuse(Failure),
}

impl Disk {
    /// One that was not heard of before.
    pub fn new(vdev: Vdev) -> Disk {
        Disk { vdev, back: Back::new(), served: None }
    }

    /// What to do.
    pub fn plan(&mut self, seen: &Snapshot) -> Plan {
        let own = disk::state(&seen.back);
        let online = seen.back.get(keys::ONLINE).is_none_or(|online| online != "0");
        match self.back.step(Seen { own, front: disk::state(&seen.front), online }) {
            Do::Nothing => Plan::Nothing,
            Do::Publish => self.publish(seen),
            Do::Connect => self.connect(seen),
            Do::Reconnect if self.served.is_some() => Plan::LetGo,
            Do::Reconnect => self.connect(seen),
            Do::Restart if self.served.is_some() => Plan::LetGo,
            Do::Restart => self.publish(seen),
            Do::AnswerClosing => Plan::AnswerClosing,
            Do::Close => Plan::Close,
            // What was said before is not said again: our own write would wake us for ever.
            Do::Remove if own == Some(State::Closed) && self.served.is_none() => Plan::Nothing,
            Do::Remove => Plan::Leave,
            Do::Forget => Plan::Forget,
        }
    }

    fn publish(&self, seen: &Snapshot) -> Plan {
        if seen.back.get(keys::FRONTEND_ID).and_then(number::u16) != Some(self.vdev.domid) {
            return refuse("frontend-id is not the domain of the directory's name");
        }
        match disk::named(&seen.back) {
            Ok(Some(named)) => Plan::Publish(named),
            Ok(None) => Plan::Nothing,
            Err(why) => Plan::Refuse(why),
        }
    }

    fn connect(&self, seen: &Snapshot) -> Plan {
        let ring = disk::ring(&seen.front);
        match (disk::named(&seen.back), ring) {
            (Ok(Some(named)), Ok(ring)) => {
                Plan::Connect(named, ring, seen.front.get(keys::BACKEND_ID).and_then(number::u16))
            }
            (Ok(None), _) => Plan::Nothing,
            (Err(why), _) | (_, Err(why)) => Plan::Refuse(why),
        }
    }

    /// The state to say when it is refused: a guest that is there has to let go.
    pub fn refusal(&self) -> State {
        match self.back.phase() {
            Phase::Fresh => State::Closed,
            _ => State::Closing,
        }
    }
}

fn refuse(why: &str) -> Plan {
    Plan::Refuse(Failure::new(Errno::INVAL, why))
}

#[cfg(test)]
mod tests {
    use protocol::tapdisk::{Grefs, Protocol};

    use super::*;

    const VDEV: Vdev = Vdev { domid: 7, devid: 51712 };

    fn nodes(text: &'static str) -> Nodes {
        text.split_whitespace().filter_map(|word| word.split_once('=')).map(|(k, v)| (k, v.to_owned())).collect()
    }

    const NAMED: Named = Named { domain: Some(5), minor: 3 };

    fn ring(gref: u32) -> Ring {
        Ring { grefs: Grefs::new(&[gref]).unwrap(), port: 9, proto: Protocol::X86_64 }
    }

    fn in_phase(phase: Phase, served: bool) -> Disk {
        let mut disk = Disk::new(VDEV);
        match phase {
            Phase::Fresh => {}
            Phase::Waiting => disk.back.published(),
            Phase::Connected => disk.back.connected(),
            Phase::Closing => disk.back.closing(),
            Phase::Closed => disk.back.closed(),
        }
        disk.served = served.then_some((5, 3));
        disk
    }

    const BACK: &str = "frontend-id=7 online=1 physical-device-path=/run/blktap-control/nbd5.3";

    #[test]
    fn what_follows_what() {
        let connect = Plan::Connect(NAMED, ring(8), Some(5));
        let refused = |why: &str| Plan::Refuse(Failure::new(Errno::INVAL, why));
        let front = |state: &str| format!("state={state} backend-id=5 ring-ref=8 event-channel=9 protocol=x86_64-abi");
        // Phase, ring served, what the backend's directory says besides, the frontend's, the plan.
        let table = [
            (Phase::Fresh, false, "state=1", Some("1"), Plan::Publish(NAMED)),
            (Phase::Fresh, false, "state=1", None, Plan::Publish(NAMED)),
            (Phase::Fresh, false, "state=1 hotplug-status=busy", Some("1"), Plan::Nothing),
            // We were started anew under a frontend that is connected.
            (Phase::Fresh, false, "state=4", Some("4"), Plan::Publish(NAMED)),
            (
                Phase::Fresh,
                false,
                "state=1 frontend-id=8",
                Some("1"),
                refused("frontend-id is not the domain of the directory's name"),
            ),
            (Phase::Waiting, false, "state=2", Some("1"), Plan::Nothing),
            (Phase::Waiting, false, "state=2", Some("3"), connect.clone()),
            (Phase::Waiting, false, "state=2", Some("4"), connect.clone()),
            (Phase::Waiting, false, "state=2", Some("5"), Plan::AnswerClosing),
            (Phase::Waiting, false, "state=2", Some("6"), Plan::Close),
            (Phase::Connected, true, "state=4", Some("4"), Plan::Nothing),
            (Phase::Connected, true, "state=4", Some("5"), Plan::AnswerClosing),
            (Phase::Connected, true, "state=4", Some("6"), Plan::Close),
            (Phase::Connected, true, "state=4", None, Plan::Close),
            // A crash kernel begins anew: first the old ring has to go.
            (Phase::Connected, true, "state=4", Some("1"), Plan::LetGo),
            (Phase::Connected, false, "state=4", Some("1"), Plan::Publish(NAMED)),
            (Phase::Connected, true, "state=4 online=0", Some("6"), Plan::Leave),
            (Phase::Connected, true, "gone", Some("4"), Plan::Forget),
            (Phase::Closing, true, "state=5", Some("5"), Plan::Nothing),
            (Phase::Closing, true, "state=5", Some("6"), Plan::Close),
            (Phase::Closed, false, "state=6", Some("6"), Plan::Nothing),
            (Phase::Closed, false, "state=6 online=0", Some("6"), Plan::Nothing),
            (Phase::Closed, true, "state=6 online=0", Some("6"), Plan::Leave),
            (Phase::Closed, false, "state=5 online=0", Some("6"), Plan::Leave),
        ];
        for (phase, served, back, front_state, expected) in table {
            let mut seen = Snapshot::default();
            if back != "gone" {
                seen.back = nodes(BACK);
                seen.back.extend(nodes(back));
            }
            if let Some(state) = front_state {
                seen.front = nodes(Box::leak(front(state).into_boxed_str()));
            }
            let plan = in_phase(phase, served).plan(&seen);
            assert_eq!(plan, expected, "{phase:?} {served} {back} {front_state:?}");
        }
    }

    #[test]
    fn a_ring_that_makes_no_sense_is_refused_once() {
        let mut disk = in_phase(Phase::Waiting, false);
        let mut back = nodes(BACK);
        back.insert(keys::STATE, "2".to_owned());
        let seen = Snapshot { back, front: nodes("state=3 backend-id=5 ring-ref=8") };
        let why = Failure::new(Errno::INVAL, "the frontend's event-channel is missing");
        assert_eq!((disk.plan(&seen), disk.refusal()), (Plan::Refuse(why), State::Closing));
        disk.back.closing();
        let mut after = seen.clone();
        after.back.insert(keys::STATE, "5".to_owned());
        assert_eq!(disk.plan(&after), Plan::Nothing);
    }

    #[test]
    fn who_granted_to_whom_is_not_decided_here() {
        let mut disk = in_phase(Phase::Waiting, false);
        let mut back = nodes(BACK);
        back.insert(keys::STATE, "2".to_owned());
        let front = nodes("state=3 backend-id=0 ring-ref=8 event-channel=9 protocol=x86_64-abi");
        assert_eq!(disk.plan(&Snapshot { back, front }), Plan::Connect(NAMED, ring(8), Some(0)));
    }
}
