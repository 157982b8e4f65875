//! The two halves of a ring on two processors: no request is torn, none is lost, and who sleeps is woken.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use model::memory::{Without, Words};
use protocol::ring::{Back, Front, Shape};

/// A ring of so many slots of two words. `Shape` is the ring's to make: the strides of a page, cut down.
const fn shape(slots: usize) -> Shape {
    let mut shape = Shape::new(1, 4032 / slots);
    shape.stride = 8;
    shape
}

const SHAPE: Shape = shape(4);

/// An event channel: pending, or not.
#[derive(Clone, Default)]
struct Event(Arc<AtomicBool>);

impl Event {
    fn notify(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

fn request(number: u32) -> [u8; 8] {
    let word = (number + 1).to_le_bytes();
    [word, word].concat().try_into().expect("two words")
}

fn bounded(check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(check);
}

/// A frontend puts two requests, one at a time, while the backend takes what is there and goes to sleep. One went before
/// them, so that the backend is awake, and no event is pending.
fn requests(without: Without) {
    bounded(move || {
        let (memory, event) = (Words::ring(8, without), Event::default());
        let mut front = Front::init(memory.clone(), SHAPE);
        front.put(&request(0));
        assert!(front.publish());
        let mut back = Back::attach(memory, SHAPE).expect("a fresh ring");
        let peer = event.clone();
        let frontend = thread::spawn(move || {
            for number in 1..3 {
                front.put(&request(number));
                if front.publish() {
                    peer.notify();
                }
            }
        });
        let mut taken = 0;
        let mut turn = || {
            let mut entry = [0; 8];
            loop {
                while back.take(&mut entry).expect("an honest frontend") {
                    assert_eq!(entry, request(taken), "torn, or not the one that was put");
                    taken += 1;
                }
                if !back.rearm().expect("an honest frontend") {
                    return;
                }
            }
        };
        turn();
        frontend.join().expect("the frontend lives");
        // Asleep since then: only an event wakes it.
        while event.take() {
            turn();
        }
        assert_eq!(taken, 3, "a lost wake-up");
    });
}

/// The same the other way: a backend answers, one at a time, while the frontend takes what is there and goes to sleep.
fn responses(without: Without) {
    bounded(move || {
        let (memory, event) = (Words::ring(8, without), Event::default());
        let mut front = Front::init(memory.clone(), SHAPE);
        (0..3).for_each(|number| front.put(&request(number)));
        assert!(front.publish());
        let mut back = Back::attach(memory, SHAPE).expect("a fresh ring");
        let mut answer = move |number| {
            let mut entry = [0; 8];
            assert_eq!(back.take(&mut entry), Ok(true));
            assert_eq!(entry, request(number), "torn, or not the one that was put");
            back.put(&request(10 + number));
            back.publish()
        };
        assert!(answer(0));
        let peer = event.clone();
        let backend = thread::spawn(move || {
            for number in 1..3 {
                if answer(number) {
                    peer.notify();
                }
            }
        });
        let mut taken = 0;
        let mut turn = || {
            let mut entry = [0; 8];
            loop {
                while front.take(&mut entry).expect("an honest backend") {
                    assert_eq!(entry, request(10 + taken), "torn, or not the one that was put");
                    taken += 1;
                }
                if !front.rearm().expect("an honest backend") {
                    return;
                }
            }
        };
        turn();
        backend.join().expect("the backend lives");
        while event.take() {
            turn();
        }
        assert_eq!(taken, 3, "a lost wake-up");
    });
}

#[test]
fn no_request_is_lost_or_torn() {
    requests(Without::Nothing);
}

#[test]
fn no_response_is_lost_or_torn() {
    responses(Without::Nothing);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn without_the_barrier_a_request_is_lost() {
    requests(Without::Fence);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn without_the_barrier_a_response_is_lost() {
    responses(Without::Fence);
}

#[test]
#[should_panic(expected = "torn")]
fn without_acquire_a_request_is_torn() {
    requests(Without::Acquire);
}

#[test]
#[should_panic(expected = "torn")]
fn without_release_a_request_is_torn() {
    requests(Without::Release);
}

/// A slot is used again as soon as its answer is seen: on a ring of one slot each request and answer overwrites the other.
#[test]
fn a_slot_that_is_used_again_holds_what_was_put_last() {
    bounded(|| {
        let one = shape(1);
        let memory = Words::ring(2, Without::Nothing);
        let mut front = Front::init(memory.clone(), one);
        let mut back = Back::attach(memory, one).expect("a fresh ring");
        let backend = thread::spawn(move || {
            let mut entry = [0; 8];
            for number in 0..2 {
                while !back.take(&mut entry).expect("an honest frontend") {
                    thread::yield_now();
                }
                assert_eq!(entry, request(number));
                back.put(&request(100 + number));
                let _event = back.publish();
            }
        });
        let mut entry = [0; 8];
        for number in 0..2 {
            front.put(&request(number));
            let _event = front.publish();
            while !front.take(&mut entry).expect("an honest backend") {
                thread::yield_now();
            }
            assert_eq!(entry, request(100 + number));
        }
        backend.join().expect("the backend lives");
    });
}
