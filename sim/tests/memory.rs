//! What the product holds of its heap: without disks, with one that is idle or loaded, while memory is short, and when all
//! is over. Hostile guests are held to the same bounds in their worlds. `-- --nocapture` prints what was measured.

use std::time::Duration;

use drivers::format::vhd::make::{Form, New};
use sim::blkback;
use sim::disk::{Disk, Model};
use sim::frontend::{Options, Workload};
use sim::image::lay;
use sim::memory::{Heap, NOTES_IDLE, NOTES_LEFT, NOTES_PER_DISK, held, peak};
use sim::run::{DRIVER, Run, use_memory};
use sim::stage::{GUEST, Guest, Stage, XVDA};
use sim::toolstack::Vbd;
use xen::limits::{MEMORY_PER_IMAGE, MEMORY_PER_RING, MEMORY_SPARE, PAGES_PER_LOWER, PAGES_RESERVED_PER_LOWER};
use xen::page::PAGE_BYTES;

/// Sectors of a guest's disk: 4 MiB.
const SECTORS: u64 = 8192;
/// Pages lent to a lower backend beside those for data: of the ring, and of descriptors.
const PAGES_OF_A_LINK: usize = 16 + 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Ram,
    Raw,
    Vhd,
}

impl Store {
    const ALL: [Store; 3] = [Store::Ram, Store::Raw, Store::Vhd];

    /// The product, with a lower disk unless it is not needed, and a guest's disk that is not attached.
    fn stage(self) -> (Stage, Guest) {
        let mut run = Run::new(7);
        if self == Store::Ram {
            let mut stage = Stage::boot(run);
            let guest = stage.on_ram(GUEST, SECTORS);
            return (stage, guest);
        }
        let disk = Disk::random(2 * SECTORS, &mut run.random);
        if self == Store::Vhd {
            let form = Form::Dynamic(64);
            lay(&mut disk.borrow_mut(), &New { id: [5; 16], sectors: SECTORS, timestamp: 0, form });
        }
        let back = run.lower(XVDA, &disk);
        // Requests pile up while it takes its time.
        back.borrow_mut().options =
            blkback::Options { latency: Duration::from_millis(2), ..blkback::Options::default() };
        let mut stage = Stage::boot_over(run, disk, back);
        let guest = match self {
            Store::Vhd => stage.guest(Vbd::new(DRIVER, GUEST, "vhd:/dev/xvda"), &Model::zeroes(SECTORS)),
            Store::Ram | Store::Raw => stage.on_lower(GUEST),
        };
        (stage, guest)
    }

    /// The pages that it is, if it is ours.
    fn pages(self) -> usize {
        if self == Store::Ram { SECTORS as usize * 512 } else { 0 }
    }

    /// What it may hold beside what any disk may.
    fn promised(self) -> usize {
        if self == Store::Vhd { MEMORY_PER_IMAGE } else { 0 }
    }
}

/// More requests at once than are served at once, up to the largest that there are.
fn load(requests: u32, flushes: u64) -> Workload {
    Workload { depth: 200, sectors_max: 2048, flushes, ..Workload::mixed(requests) }
}

/// Guests by how they hand their pages over, and by how large their requests are.
fn guests() -> impl Iterator<Item = Options> {
    let shapes = [false, true].into_iter().flat_map(|persistent| [0, 32, 256].map(|indirect| (persistent, indirect)));
    shapes.map(|(persistent, indirect)| Options { persistent, indirect, order: 4, ..Options::default() })
}

#[test]
fn without_disks_and_with_a_lower_one() {
    let nothing = held();
    let bare = Stage::bare(1);
    let alone = held() - nothing;
    println!("no disks: {alone:?}");
    assert!(alone.pages == 0 && alone.notes <= 12 << 10, "{alone:?}");
    drop(bare);
    assert_eq!(held(), nothing, "a domain that has ended holds nothing");
    let mut run = Run::new(1);
    let disk = Disk::random(64, &mut run.random);
    let back = run.lower(XVDA, &disk);
    let stage = Stage::boot_over(run, disk, back);
    let more = held() - nothing;
    println!("a lower disk: {:?}", more - alone);
    assert_eq!(more.pages, (PAGES_PER_LOWER + PAGES_RESERVED_PER_LOWER + PAGES_OF_A_LINK) * PAGE_BYTES);
    assert!(more.notes - alone.notes <= 128 << 10, "{more:?}");
    drop(stage);
}

#[test]
fn a_disk_idle_and_loaded() {
    for store in Store::ALL {
        let (mut idle_max, mut loaded_max, mut kept_max) = (0, 0, 0);
        for options in guests() {
            let (mut stage, guest) = store.stage();
            guest.front.borrow_mut().options = options;
            let before = held();
            stage.attach(&guest);
            stage.run.rest(Duration::from_secs(2));
            let idle = held() - before;
            assert!(idle.notes <= NOTES_IDLE && idle.pages == store.pages(), "{store:?} {options:?}: {idle:?}");
            peak();
            guest.front.borrow_mut().work(load(2000, 5));
            stage.run.at_rest(&guest.front);
            let (loaded, kept) = (peak() - before, held() - before);
            let bound = NOTES_PER_DISK + store.promised();
            assert!(loaded.notes <= bound, "{store:?} {options:?}: {loaded:?} under load");
            // Descriptors of the guest that are copied before they are read.
            assert!(loaded.pages <= store.pages() + PAGE_BYTES, "{store:?} {options:?}: {loaded:?} under load");
            stage.detach(&guest);
            stage.assert_clean();
            let left = held() - before;
            assert!(left.notes <= NOTES_LEFT && left.pages == 0, "{store:?} {options:?}: {left:?} left");
            (idle_max, loaded_max) = (idle_max.max(idle.notes), loaded_max.max(loaded.notes));
            kept_max = kept_max.max(kept.notes);
        }
        println!("{store:?}: idle {idle_max}, loaded {loaded_max}, kept afterwards {kept_max} bytes beside pages");
    }
}

/// Guests, disks and loads come and go, and leave nothing: a few bytes each time would be more in the end than a table that
/// grew once.
#[test]
fn what_comes_and_goes_leaves_nothing() {
    for store in Store::ALL {
        let (mut stage, guest) = store.stage();
        let mut left: Option<Heap> = None;
        for round in 0..40 {
            // A disk in memory is another one each time.
            let options = guests().nth(round % 6).expect("there are six");
            guest.front.borrow_mut().options = Options { credulous: store == Store::Ram, ..options };
            stage.attach(&guest);
            guest.front.borrow_mut().work(load(200, 5));
            stage.run.at_rest(&guest.front);
            stage.detach(&guest);
            stage.run.rest(Duration::from_secs(5));
            // The first rounds find how large most tables have to be.
            if round >= 6 {
                let (now, first) = (held(), *left.get_or_insert_with(held));
                assert!(now.notes <= first.notes + 1024 && now.pages == first.pages, "{now:?}, {first:?} at first");
            }
        }
        stage.assert_clean();
    }
}

/// While memory is short, a ring keeps to what it was promised, however much its guest asks for at once.
#[test]
fn a_ring_keeps_to_its_promise_while_memory_is_short() {
    for store in [Store::Ram, Store::Raw] {
        let mut most = 0;
        for options in guests() {
            let (mut stage, guest) = store.stage();
            guest.front.borrow_mut().options = options;
            let before = held();
            stage.attach(&guest);
            peak();
            use_memory(0, MEMORY_SPARE);
            guest.front.borrow_mut().work(load(200, 5));
            stage.run.at_rest(&guest.front);
            use_memory(3 << 10, 32 << 20);
            let loaded = peak() - before;
            assert!(loaded.notes <= MEMORY_PER_RING, "{store:?} {options:?}: {loaded:?}");
            most = most.max(loaded.notes);
            stage.detach(&guest);
        }
        println!("{store:?} while memory is short: {most} bytes beside pages");
    }
}
