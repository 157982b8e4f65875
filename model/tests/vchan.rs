//! A vchan between two processors: no byte is torn, and who asked for an event and sleeps is woken.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use model::memory::{Without, Words};
use protocol::vchan::{Endpoint, Orders, Rings};

/// The left ring in the page, the right one too: nothing is granted beside it.
const LEFT: usize = 1024;

/// The head, the flags, and the first words of the client's ring.
fn page(without: Without) -> Words {
    let words = [0, 4, 8, 12, 16].into_iter().chain((0..3).map(|i| LEFT + 4 * i)).chain([2048]);
    Words::new(words, 20..24, without)
}

/// A client writes twice, while the server reads what is there and goes to sleep. It wrote once before, so that the server
/// is awake, and no event is pending.
fn writes(without: Without) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let memory = page(without);
        let rings = || Rings { left: memory.clone(), right: memory.clone() };
        let orders = Orders::new(10, 11).expect("a pair of orders");
        let mut server = Endpoint::serve(memory.clone(), rings(), orders, std::iter::empty());
        let mut client = Endpoint::connect(memory.clone(), rings(), orders);
        let event = Arc::new(AtomicBool::new(false));
        let mut write = move |number: u32| client.write(&number.to_le_bytes()).expect("an honest server").notify;
        assert!(write(1), "a server asks for the first");
        let peer = event.clone();
        let other = thread::spawn(move || {
            for number in 2..4 {
                if write(number) {
                    peer.store(true, Ordering::Release);
                }
            }
        });
        let mut read = 0;
        let mut turn = || {
            let mut bytes = [0; 4];
            loop {
                while server.read(&mut bytes).expect("an honest client").bytes == 4 {
                    read += 1;
                    assert_eq!(u32::from_le_bytes(bytes), read, "torn, or not what was written");
                }
                if !server.ask_data().expect("an honest client") {
                    return;
                }
            }
        };
        turn();
        other.join().expect("the client lives");
        while event.swap(false, Ordering::AcqRel) {
            turn();
        }
        assert_eq!(read, 3, "a lost wake-up");
    });
}

#[test]
fn no_byte_is_torn_and_no_wake_is_lost() {
    writes(Without::Nothing);
}

/// Two orderings stand behind the wake, and one is enough: the steps on the notify byte, which both sides take between
/// their index and their look, and the full barrier, for peers whose steps order less than ours.
#[test]
fn either_the_barrier_or_the_flags_will_do() {
    writes(Without::Fence);
    writes(Without::Flags);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn without_both_a_wake_is_lost() {
    writes(Without::FlagsAndFence);
}

#[test]
#[should_panic(expected = "torn")]
fn without_release_a_byte_is_torn() {
    writes(Without::Release);
}
