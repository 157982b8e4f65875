//! What a differencing disk says of its parent, and whether that is so.

use drivers::disk::SECTOR_BYTES;
use drivers::format::vhd::open::Place;
use embassy_futures::block_on;
use protocol::vhd::{Code, Header, Locator, TEXT_BYTES_MAX, file_name, locator_text};

use super::{Checked, SLACK_SECONDS, Who, reason};
use crate::disk::{image, load};
use crate::failure::Failure;
use crate::medium::Medium;

const PART: &str = "parent";
/// What is wrong with the texts alone, which are written anew from the header's.
pub const NAMES: &str = "parent's names";

impl<M: Medium> Checked<'_, M> {
    pub(super) fn parent(&mut self, header: &Header) -> Result<(), Failure> {
        let late = self.options.now.map(|now| now.saturating_add(SLACK_SECONDS));
        if late.is_some_and(|late| header.parent_timestamp > late) {
            self.wrong(Who::Blktap, PART, "changed in the future");
        }
        let mut text = heapless_text();
        let own = match header.parent_name(&mut text) {
            Ok(()) => text.as_str().to_owned(),
            Err(reason) => {
                self.wrong(Who::Blktap, PART, format_args!("its name in the header: {reason:?}"));
                String::new()
            }
        };
        if !own.is_ascii() {
            self.wrong(Who::Blktap, PART, format_args!("its name {own:?} is not ASCII"));
        }
        let mut names = Vec::new();
        let mut seen = Vec::new();
        for (number, locator) in header.locators.iter().enumerate() {
            if seen.contains(&locator.code) {
                self.wrong(Who::Blktap, PART, format_args!("locator {number} has the kind of another one"));
            }
            if locator.code != Code::None {
                seen.push(locator.code);
            }
            if let Some(name) = self.locator(number, locator)? {
                let last = file_name(&name).unwrap_or_default();
                if last != own {
                    let text = format_args!("locator {number} names {last:?}, the header {own:?}");
                    self.wrong(Who::Blktap, NAMES, text);
                }
                names.push(name);
            }
        }
        if names.is_empty() {
            self.wrong(Who::Blktap, PART, "no locator names it");
        }
        if !own.is_empty() {
            names.push(own);
        }
        self.is_there(header, &names)
    }

    /// Checks a locator and reads its name, if it is of a kind that has one that we read.
    fn locator(&mut self, number: usize, locator: &Locator) -> Result<Option<String>, Failure> {
        match locator.code {
            Code::None => {
                if *locator != Locator::default() {
                    self.wrong(Who::Blktap, PART, format_args!("locator {number} is none and not zero"));
                }
                return Ok(None);
            }
            Code::Other(code) => {
                let known = matches!(&code.to_be_bytes(), b"Wi2r" | b"Wi2k" | b"Mac ");
                if !known {
                    self.wrong(Who::Blktap, PART, format_args!("locator {number} is of kind {code:#x}"));
                }
                return Ok(None);
            }
            Code::W2ru | Code::W2ku | Code::Macx => {}
        }
        let (at, bytes) = match locator.place() {
            Ok(place) => place,
            Err(bad) => {
                self.wrong(Who::Everyone, PART, format_args!("locator {number}: {}", reason(bad)));
                return Ok(None);
            }
        };
        let sectors = bytes.div_ceil(SECTOR_BYTES) as u64;
        // Room as blktap counts it.
        let room = match locator.space {
            sectors if sectors < SECTOR_BYTES as u32 => u64::from(sectors),
            bytes => u64::from(bytes).div_ceil(SECTOR_BYTES as u64),
        };
        if at + room > self.sectors - 1 || at + sectors > self.sectors - 1 {
            self.wrong(Who::Everyone, PART, format_args!("locator {number} is beyond the end"));
            return Ok(None);
        }
        self.metadata.push((at, at + room.max(sectors), "parent locator"));
        let mut text = heapless_text();
        match locator_text(locator.code, &load(self.store, at, sectors)?[..bytes], &mut text) {
            Ok(()) => Ok(Some(text.as_str().to_owned())),
            Err(reason) => {
                self.wrong(Who::Everyone, NAMES, format_args!("locator {number}: {reason:?}"));
                Ok(None)
            }
        }
    }

    /// Looks for the parent by all its names.
    fn is_there(&mut self, header: &Header, names: &[String]) -> Result<(), Failure> {
        let folder = self.store.place()?;
        let mut why = "it has no name".to_owned();
        for name in names {
            match block_on(folder.parent(name)) {
                Ok((_, path)) if header.parent == [0; 16] => {
                    self.report.parent = Some(path);
                    return Ok(());
                }
                Ok((store, path)) => match image(&store) {
                    Ok(its) if its.footer.id == header.parent => {
                        self.report.parent = Some(path);
                        return Ok(());
                    }
                    Ok(_) => why = format!("{path} has another unique id"),
                    Err(failure) => why = failure.to_string(),
                },
                Err(error) => why = error.text,
            }
        }
        self.wrong(Who::Everyone, PART, why);
        Ok(())
    }
}

fn heapless_text() -> heapless::String<TEXT_BYTES_MAX> {
    heapless::String::new()
}
