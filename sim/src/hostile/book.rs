//! Requests in flight: each is to be answered once, with its number, its operation, and an answer that is right.

use std::collections::{BTreeMap, BTreeSet};

use xen::port::{GrantRef, Instant};

use crate::blkif::{Response, status};
use crate::hostile::judge::Verdict;
use crate::hostile::pages::Pages;

/// Requests in flight that carry one number: which of them an answer is for nobody can tell.
#[derive(Default)]
struct Group {
    count: u32,
    allowed: BTreeSet<(u8, i16)>,
    names: BTreeSet<u32>,
    /// References that a read may write to.
    into: BTreeSet<u32>,
    /// The pages that are, or were meanwhile, under these references.
    exposed: Vec<usize>,
    /// Grants made for these requests alone.
    own: Vec<GrantRef>,
    marks: Vec<&'static str>,
    since: Instant,
}

/// The book of one connection.
#[derive(Default)]
pub struct Book {
    groups: BTreeMap<u64, Group>,
    /// Requests answered.
    pub answered: u32,
}

impl Book {
    /// A request is about to be published.
    pub fn open(&mut self, verdict: &Verdict, own: Vec<GrantRef>, now: Instant, pages: &mut Pages) {
        let group = self.groups.entry(verdict.id).or_default();
        if group.count == 0 {
            group.since = now;
        }
        group.count += 1;
        group.own.extend(own);
        group.admit(verdict, pages);
    }

    /// A slot in flight was changed: it may be read as it was or as it is.
    pub fn amend(&mut self, verdict: &Verdict, pages: &mut Pages) {
        if let Some(group) = self.groups.get_mut(&verdict.id) {
            group.admit(verdict, pages);
        }
    }

    /// What these requests show, once they are answered.
    pub fn mark(&mut self, id: u64, mark: &'static str) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.marks.push(mark);
        }
    }

    /// The number in flight that is meant by an answer of which one byte of the number may have been written over.
    fn meant(&self, id: u64, spoilt: Option<usize>) -> u64 {
        let Some(byte) = spoilt else { return id };
        let like = |own: &&u64| (**own ^ id) & !(0xff << (8 * byte)) == 0;
        self.groups.keys().find(like).copied().unwrap_or(id)
    }

    /// Everything in flight may come to anything, and every page that could be written to may be.
    pub fn anything(&mut self, pages: &mut Pages) {
        let group = self.groups.entry(0).or_default();
        group.into.extend(pages.granted());
        group.names.extend(pages.granted());
        group.expose(pages);
    }

    /// Something about a reference changed: whoever names it may fail, and may write to what is under it now.
    pub fn touched(&mut self, grant: Option<u32>, pages: &mut Pages) {
        for group in self.groups.values_mut() {
            if grant.is_some_and(|grant| !group.names.contains(&grant)) {
                continue;
            }
            let ops: Vec<u8> = group.allowed.iter().map(|(op, _)| *op).collect();
            group.allowed.extend(ops.into_iter().flat_map(|op| [(op, status::OKAY), (op, status::ERROR)]));
            group.expose(pages);
        }
    }

    /// Whether somebody in flight names this reference.
    pub fn names(&self, grant: u32) -> bool {
        self.groups.values().any(|group| group.names.contains(&grant))
    }

    /// Whether this grant ends with somebody in flight.
    pub fn owns(&self, grant: GrantRef) -> bool {
        self.groups.values().any(|group| group.own.contains(&grant))
    }

    /// An answer. The marks of requests that are settled with it are handed out.
    pub fn answer(
        &mut self,
        answer: Response,
        spoilt: Option<usize>,
        pages: &mut Pages,
    ) -> Result<Vec<&'static str>, String> {
        let Response { op, status, .. } = answer;
        let id = self.meant(answer.id, spoilt);
        let Some(group) = self.groups.get_mut(&id) else {
            let all: Vec<String> = self.groups.keys().map(|id| self.tell(*id)).collect();
            return Err(format!("{answer:x?} is to nothing that is in flight: {all:#?}"));
        };
        if !group.allowed.contains(&(op, status)) {
            let (allowed, marks) = (&group.allowed, &group.marks);
            return Err(format!("{id:#x} was answered ({op}, {status}), right are {allowed:?}; {marks:?}"));
        }
        self.answered += 1;
        group.count -= 1;
        if group.count > 0 {
            return Ok(Vec::new());
        }
        let group = self.groups.remove(&id).expect("just seen");
        pages.cover(&group.exposed)?;
        for grant in group.own {
            // Somebody else in flight may have been made to name it.
            self.touched(Some(grant.0), pages);
            pages.done_with(grant);
        }
        Ok(group.marks)
    }

    /// Numbers in flight.
    pub fn ids(&self) -> Vec<u64> {
        self.groups.keys().copied().collect()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.groups.values().map(|group| group.count).sum()
    }

    /// Since when the oldest is.
    pub fn oldest(&self) -> Option<(u64, Instant)> {
        self.groups.iter().map(|(id, group)| (*id, group.since)).min_by_key(|(_, since)| *since)
    }

    /// What is known of a number, for the text of a failure.
    pub fn tell(&self, id: u64) -> String {
        let group = &self.groups[&id];
        format!("{id:#x}, {} times: {:?} {:?}", group.count, group.allowed, group.marks)
    }

    /// The ring is gone: from now on nobody may write to any page.
    pub fn abandon(&mut self, pages: &mut Pages) -> Result<(), String> {
        for group in std::mem::take(&mut self.groups).into_values() {
            pages.cover(&group.exposed)?;
            group.own.into_iter().for_each(|grant| pages.done_with(grant));
        }
        Ok(())
    }
}

impl Group {
    fn admit(&mut self, verdict: &Verdict, pages: &mut Pages) {
        self.allowed.extend(verdict.allowed.iter().map(|status| (verdict.op, *status)));
        self.names.extend(&verdict.names);
        self.into.extend(&verdict.into);
        self.expose(pages);
    }

    fn expose(&mut self, pages: &mut Pages) {
        for page in self.into.iter().flat_map(|grant| pages.writable_under(*grant)).collect::<Vec<_>>() {
            if !self.exposed.contains(&page) {
                self.exposed.push(page);
                pages.expose(&[page]);
            }
        }
    }
}
