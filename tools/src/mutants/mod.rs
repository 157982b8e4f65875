//! Bugs are put into a copy of the tree, one at a time, and the tests have to notice.
//!
//! - `tree`: the copy, and a file of it that is another one for a while
//! - `suite`: tests that are built and run there
//! - `known`: bugs that backends had, or that this one could have, each with the test that notices
//! - `made`: bugs that cargo-mutants thinks of, and the suites that judge them

pub mod known;
pub mod made;
pub mod suite;
pub mod tree;
