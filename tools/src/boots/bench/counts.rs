//! What the plugin wrote: for each phase, what each processor executed, by address.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Whose instructions are counted.
pub const OWNERS: usize = 4;

/// Processors of dom0.
pub const DOM0: usize = 0;
/// Of the guest.
pub const GUEST: usize = 1;
/// Of tapdom.
pub const TAPDOM: usize = 2;
/// Of another guest.
pub const NEIGHBOUR: usize = 3;

/// Whose each of the machine's processors is.
pub type Owners = &'static [usize];

/// One processor each.
pub const THREE: Owners = &[DOM0, GUEST, TAPDOM];
/// A guest with four, and tapdom with as many.
pub const FOUR_OF_A_GUEST: Owners = &[DOM0, GUEST, TAPDOM, GUEST, GUEST, GUEST, TAPDOM, TAPDOM, TAPDOM];
/// Two guests.
pub const TWO_GUESTS: Owners = &[DOM0, GUEST, TAPDOM, NEIGHBOUR];

/// What one processor executed at one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// How often what begins here was entered.
    pub entered: u64,
    /// Instructions of what begins here.
    pub instructions: u64,
}

/// What one owner's processors executed in a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// All instructions.
    pub instructions: u64,
    /// Of them, rounds of repeated string instructions after the first.
    pub strings: u64,
    /// Hypercalls: `vmmcall` of a PVH domain, the kernel's `syscall` of a PV domain.
    pub hypercalls: u64,
    /// Times a PVH domain was entered: after a hypercall, an interrupt, an exit of any kind.
    pub entries: u64,
    /// Times the processor went to sleep.
    pub halts: u64,
    /// By address.
    pub blocks: BTreeMap<u64, Block>,
}

/// One phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// By owner.
    pub processors: [Processor; OWNERS],
    /// Instructions of each processor of tapdom's.
    pub of_tapdom: BTreeMap<usize, u64>,
    /// Instructions that each owner's processors had executed at each lap.
    pub laps: Vec<[u64; OWNERS]>,
}

/// All phases of a boot.
pub struct Counts(pub Vec<Phase>);

/// A PV kernel calls Xen by the instruction by which programs call it.
const KERNEL: u64 = 0xffff_8000_0000_0000;

impl Counts {
    /// Reads a file of the plugin, from a machine with these processors.
    pub fn read(path: &Path, owners: Owners) -> Result<Counts> {
        let file = File::open(path).with_context(|| format!("what the plugin counted: {}", path.display()))?;
        let (mut phases, mut phase) = (Vec::new(), Phase::default());
        for line in BufReader::new(file).lines() {
            let line = line?;
            if let Some(number) = line.strip_prefix("end ") {
                ensure!(number.parse::<usize>()? == phases.len(), "phase {number} is not the next");
                phases.push(std::mem::take(&mut phase));
            } else {
                phase.add(&line, owners).with_context(|| format!("{}: {line:?}", path.display()))?;
            }
        }
        Ok(Counts(phases))
    }
}

impl Phase {
    fn add(&mut self, line: &str, owners: Owners) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["lap", sums @ ..] = &words[..] {
            let mut lap = [0; OWNERS];
            for (owner, sum) in owners.iter().zip(sums) {
                lap[*owner] += sum.parse::<u64>()?;
            }
            self.laps.push(lap);
            return Ok(());
        }
        let [_, processor, address, entered, instructions, kind] = words[..] else { bail!("not six words") };
        let address = u64::from_str_radix(address, 16)?;
        let (entered, instructions) = (entered.parse::<u64>()?, instructions.parse::<u64>()?);
        let number = processor.parse::<usize>()?;
        let owner = *owners.get(number).context("a processor too many")?;
        if owner == TAPDOM {
            *self.of_tapdom.entry(number).or_default() += instructions;
        }
        let processor = &mut self.processors[owner];
        processor.instructions += instructions;
        match kind {
            "plain" => {}
            "string" => processor.strings += instructions,
            "vmmcall" => processor.hypercalls += entered,
            "syscall" if address >= KERNEL => processor.hypercalls += entered,
            "syscall" => {}
            "vmrun" => processor.entries += entered,
            "halt" => processor.halts += entered,
            _ => bail!("no such kind"),
        }
        let block = processor.blocks.entry(address).or_default();
        block.entered += entered;
        block.instructions += instructions;
        Ok(())
    }

    /// Instructions of all processors.
    pub fn instructions(&self) -> u64 {
        self.processors.iter().map(|processor| processor.instructions).sum()
    }
}

impl Processor {
    /// How often a function was called, by its address.
    pub fn calls(&self, address: u64) -> u64 {
        self.blocks.get(&address).map_or(0, |block| block.entered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_up() {
        let mut phase = Phase::default();
        for line in [
            "0 2 100000 10 50 plain",
            "0 2 100000 1 3 plain",
            "0 2 100010 4 12 vmmcall",
            "0 2 ffff82d040200000 512 512 string",
            "0 0 7fff00000000 1 2 syscall",
            "0 0 ffffffff81001000 3 6 syscall",
            "lap 5 6 7 0 0 0 0 0",
        ] {
            phase.add(line, THREE).unwrap();
        }
        let tapdom = &phase.processors[TAPDOM];
        assert_eq!((tapdom.instructions, tapdom.strings, tapdom.hypercalls), (577, 512, 4));
        assert_eq!((tapdom.calls(0x10_0000), tapdom.calls(0x10_0001)), (11, 0));
        assert_eq!(phase.processors[DOM0].hypercalls, 3);
        assert_eq!((phase.instructions(), &phase.laps[..]), (585, &[[5, 6, 7, 0]][..]));
        for bad in ["0 3 1 1 1 plain", "0 0 1 1 1 other", "0 0 1 1", "0 0 z 1 1 plain", "lap x"] {
            assert!(phase.add(bad, THREE).is_err(), "{bad}");
        }
        let mut shared = Phase::default();
        for line in ["0 1 100000 1 5 plain", "0 5 100000 1 6 plain", "lap 1 2 3 4 5 6 0 0"] {
            shared.add(line, FOUR_OF_A_GUEST).unwrap();
        }
        assert_eq!((shared.processors[GUEST].instructions, shared.laps[0]), (11, [1, 17, 3, 0]));
    }
}
