//! The table of blocks, their bitmaps, and blktap's map of full ones.

use drivers::disk::SECTOR_BYTES;
use protocol::vhd::{ALIGN_SECTORS, Header, Kind, UNUSED, bitmap_sectors, bits};

use super::{Checked, Who, is_zero};
use crate::disk::load;
use crate::failure::Failure;
use crate::medium::Medium;
use crate::progress::Progress;

/// Sectors of the table that are read at once.
const TABLE_SECTORS: u64 = 512;

/// Where blocks are, and their numbers.
type Places = Vec<(u32, u32)>;

impl<M: Medium> Checked<'_, M> {
    pub(super) fn blocks(&mut self, header: &Header, batmap: Option<&[u8]>) -> Result<(), Failure> {
        let Some(places) = self.table(header)? else { return Ok(()) };
        let (bitmap, stride) = sizes(header);
        let table_end = header.batmap_at();
        let metadata_end = self.metadata.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
        let mut last: Option<(u32, u32)> = None;
        for (at, block) in &places {
            let end = u64::from(*at) + stride;
            let on_metadata = |(from, to, _): &(u64, u64, _)| *from < end && u64::from(*at) < *to;
            if self.metadata.iter().any(on_metadata) || u64::from(*at) < table_end {
                self.wrong(Who::Everyone, "table", format_args!("block {block} at sector {at} lies on metadata"));
            }
            if end > self.sectors - 1 {
                let text = format!("block {block} at sector {at} ends at {end} of {}", self.sectors - 1);
                self.wrong(Who::Everyone, "table", text);
            }
            if let Some((before, other)) = last.filter(|(before, _)| u64::from(*before) + stride > u64::from(*at)) {
                let text = format_args!("block {block} at sector {at} lies on block {other} at {before}");
                self.wrong(Who::Everyone, "table", text);
            }
            self.report.unaligned += u64::from(!(u64::from(*at) + bitmap).is_multiple_of(ALIGN_SECTORS.into()));
            last = Some((*at, *block));
        }
        self.report.blocks = places.len() as u64;
        if !self.store.is_device() {
            let used = metadata_end + places.len() as u64 * stride;
            self.report.unused = (self.sectors - 1).saturating_sub(used);
        }
        self.batmap_blocks(header, batmap, &places);
        self.bitmaps(header, batmap, &places)
    }

    /// Reads the table; the blocks that are there come in the order in which they lie. None if there are more than fit.
    fn table(&mut self, header: &Header) -> Result<Option<Places>, Failure> {
        let (_, stride) = sizes(header);
        let fit = self.sectors / stride + 1;
        let (mut places, mut block, mut at) = (Places::new(), 0, header.table_at);
        while block < header.entries {
            let sectors = TABLE_SECTORS.min(header.batmap_at() - at);
            for word in load(self.store, at, sectors)?.as_chunks().0 {
                let word = u32::from_be_bytes(*word);
                if word != UNUSED && block < header.entries {
                    places.push((word, block));
                }
                block = block.saturating_add(1);
            }
            if places.len() as u64 > fit {
                self.wrong(Who::Everyone, "table", "more blocks than there is room for");
                return Ok(None);
            }
            at += sectors;
        }
        places.sort_unstable();
        Ok(Some(places))
    }

    /// Blocks that are said to be full and are not there.
    fn batmap_blocks(&mut self, header: &Header, batmap: Option<&[u8]>, places: &Places) {
        let Some(batmap) = batmap else { return };
        let mut there: Vec<u32> = places.iter().map(|(_, block)| *block).collect();
        there.sort_unstable();
        let mut block = 0;
        while block < header.entries {
            let (full, count) = bits::run(batmap, block, header.entries);
            if full {
                for number in (block..block + count).filter(|number| there.binary_search(number).is_err()) {
                    self.wrong(Who::Blktap, "batmap", format_args!("block {number} is full and not there"));
                }
            }
            block += count;
        }
    }

    fn bitmaps(&mut self, header: &Header, batmap: Option<&[u8]>, places: &Places) -> Result<(), Failure> {
        let (bitmap, stride) = sizes(header);
        let name = self.store.path().display().to_string();
        let mut progress = Progress::new(format!("check {name}"), places.len() as u64);
        for (done, (at, block)) in places.iter().enumerate() {
            progress.done(done as u64);
            if u64::from(*at) + stride >= self.sectors {
                continue;
            }
            let map = load(self.store, (*at).into(), bitmap)?;
            let written = bits::ones(&map, 0, header.block_sectors);
            self.report.written += u64::from(written);
            let full = batmap.is_some_and(|batmap| bits::bit(batmap, *block));
            if full && written < header.block_sectors {
                let missing = header.block_sectors - written;
                let text = format_args!("block {block} is said to be full and lacks {missing} sectors");
                self.wrong(Who::Everyone, "batmap", text);
            }
            // Above a parent, what the bitmap does not have is the parent's, and what lies there is nothing.
            if self.options.data && self.footer.kind == Kind::Dynamic {
                self.data(header, (*at, *block), &map)?;
            }
        }
        Ok(())
    }

    /// Data where the bitmap says that there are none: some readers see them, others do not.
    fn data(&mut self, header: &Header, (at, block): (u32, u32), map: &[u8]) -> Result<(), Failure> {
        let data = u64::from(at) + sizes(header).0;
        let mut sector = 0;
        while sector < header.block_sectors {
            let (set, count) = bits::run(map, sector, header.block_sectors);
            if !set {
                let bytes = load(self.store, data + u64::from(sector), count.into())?;
                let found = bytes.chunks(SECTOR_BYTES).position(|bytes| !is_zero(bytes));
                if let Some(found) = found {
                    let text = format_args!("block {block} has data in sector {} and no bit", sector as usize + found);
                    self.wrong(Who::Everyone, "bitmap", text);
                }
            }
            sector += count;
        }
        Ok(())
    }
}

/// Sectors of a bitmap, and of a bitmap with its block.
fn sizes(header: &Header) -> (u64, u64) {
    let bitmap = u64::from(bitmap_sectors(header.block_sectors));
    (bitmap, bitmap + u64::from(header.block_sectors))
}
