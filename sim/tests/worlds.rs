//! The worlds of `make sim`, a fixed few of each kind. `SEED=17 cargo test -p sim --test worlds honest` replays one,
//! `make sim SEED=17` with every step told.

use sim::run::seeds;
use sim::worlds::{Kind, play};

fn some(kind: Kind) {
    seeds(0..150, |seed| {
        play(kind, seed);
    });
}

#[test]
fn honest() {
    some(Kind::Honest);
}

#[test]
fn clumsy() {
    some(Kind::Clumsy);
}

#[test]
fn hostile() {
    some(Kind::Hostile);
}

#[test]
fn a_world_is_the_same_each_time_it_is_played() {
    for kind in Kind::ALL {
        assert_eq!(play(kind, 4), play(kind, 4), "{kind:?}");
        assert_ne!(play(kind, 4), play(kind, 5), "{kind:?}");
    }
}
