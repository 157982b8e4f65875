//! The scenarios, in the order in which one boot goes through them: guests that one makes are used by the next, and
//! those that end a guest or the backend come last.

mod clients;
mod control;
mod faults;
mod life;
pub(super) mod plugging;
mod records;
mod shapes;
mod use_of_disks;
mod vcpus;
mod vhd;

use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::reporter::Reporter;
use super::world::World;
use crate::report::{Backend, Line};

/// One thing that is demanded of a backend.
pub struct Scenario {
    /// Its name on the command line and in the report.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub shows: &'static str,
    /// Whether dom0's blkback has the feature at all.
    pub fits_dom0: bool,
    run: fn(&mut World<'_>) -> Result<()>,
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "ready",
        shows: "tapdom says it is ready, on its console and in xenstore",
        fits_dom0: false,
        run: life::ready,
    },
    Scenario {
        name: "early",
        shows: "a disk attached before tapdom's first instruction is served; how long that took, and in what memory",
        fits_dom0: false,
        run: life::early,
    },
    Scenario {
        name: "dom0-frontend",
        shows: "dom0 itself uses a disk: fio verifies, and the lower disk has the same bytes",
        fits_dom0: true,
        run: use_of_disks::dom0_frontend,
    },
    Scenario {
        name: "pv-files",
        shows: "a PV guest keeps 64 MiB of files on ext4, and dom0 finds them on the lower disk",
        fits_dom0: true,
        run: use_of_disks::pv_files,
    },
    Scenario {
        name: "pv-fio",
        shows: "fio at depth 32 with sizes from 512 B to 1 MiB verifies in the guest and from dom0",
        fits_dom0: true,
        run: use_of_disks::pv_fio,
    },
    Scenario {
        name: "vhd-qemu",
        shows: "a VHD that QEMU made serves a PV guest's files and dom0's fio, and QEMU reads what they wrote",
        fits_dom0: false,
        run: vhd::qemu,
    },
    Scenario {
        name: "vhd-volumes",
        shows: "a guest boots from a chain of VHDs on logical volumes, is snapshotted under load, and each layer is what it was",
        fits_dom0: false,
        run: vhd::volumes,
    },
    Scenario {
        name: "hotplug",
        shows: "disks come to and go from a running guest within libxl's wait",
        fits_dom0: true,
        run: plugging::hotplug,
    },
    Scenario {
        name: "cycles",
        shows: "fifty times attach and detach leave nothing behind",
        fits_dom0: true,
        run: plugging::cycles,
    },
    Scenario {
        name: "control",
        shows: "tap-ctl lists, makes, tells of and takes away disks over the vchan; xl attaches one, fio verifies",
        fits_dom0: false,
        run: control::life,
    },
    Scenario {
        name: "control-pause",
        shows: "a disk is paused under load and goes on with another image of the same content",
        fits_dom0: false,
        run: control::pause,
    },
    Scenario {
        name: "control-killed",
        shows: "a tap-ctl that is killed in the middle of a pause leaves nothing, and the next command works",
        fits_dom0: false,
        run: control::killed,
    },
    Scenario {
        name: "control-serve",
        shows: "tap-ctl serve offers tapdisk's socket, and tap-ctl works over it",
        fits_dom0: false,
        run: clients::serve,
    },
    Scenario {
        name: "control-xenio",
        shows: "tap-ctl xenio connects a guest to a disk that messages made, twice, and lets go of it",
        fits_dom0: false,
        run: clients::xenio,
    },
    Scenario {
        name: "control-raw",
        shows: "libxenvchan carries raw messages of both dialects, and each byte of each answer is right",
        fits_dom0: false,
        run: clients::raw,
    },
    Scenario {
        name: "control-many",
        shows: "300 disks at once are listed and told of whole; in what memory",
        fits_dom0: false,
        run: clients::many,
    },
    Scenario {
        name: "read-only",
        shows: "mode r: reads are answered, writes refused",
        fits_dom0: true,
        run: shapes::read_only,
    },
    Scenario {
        name: "partition",
        shows: "a GPT partition of the lower disk is a disk",
        fits_dom0: true,
        run: shapes::partition,
    },
    Scenario {
        name: "resize",
        shows: "a guest sees its disk grow while it uses it",
        fits_dom0: true,
        run: shapes::resize,
    },
    Scenario {
        name: "discard",
        shows: "space that a guest gives back reaches the lower disk",
        fits_dom0: true,
        run: shapes::discard,
    },
    Scenario {
        name: "ram",
        shows: "a RAM disk of 64 MiB keeps files and passes fio",
        fits_dom0: false,
        run: use_of_disks::ram,
    },
    Scenario {
        name: "vcpus",
        shows: "a tapdom of two vCPUs serves a guest of two by two rings: files, fio, a pause, a destroy under load",
        fits_dom0: false,
        run: vcpus::two,
    },
    Scenario {
        name: "wrong-targets",
        shows: "a target that cannot be served fails with a text that names it; the others are served on",
        fits_dom0: false,
        run: faults::wrong_targets,
    },
    Scenario {
        name: "qdisk-kind",
        shows: "a disk of kind qdisk that cannot be served is answered with an error text",
        fits_dom0: false,
        run: faults::qdisk_kind,
    },
    Scenario {
        name: "records",
        shows: "what xenstore and dom0's kernel show of seven disks is what the records say, as in the simulator",
        fits_dom0: false,
        run: records::dom0_frontend,
    },
    Scenario {
        name: "pvh-files",
        shows: "a PVH guest keeps files on its disk",
        fits_dom0: true,
        run: use_of_disks::pvh_files,
    },
    Scenario {
        name: "four-disks",
        shows: "four frontends at once; one stops answering, the others go on",
        fits_dom0: true,
        run: plugging::four_disks,
    },
    Scenario {
        name: "reboot",
        shows: "a guest reboots and finds its disk as it was",
        fits_dom0: true,
        run: life::reboot,
    },
    Scenario {
        name: "destroy",
        shows: "a guest is destroyed in the middle of writes",
        fits_dom0: true,
        run: life::destroy,
    },
    Scenario {
        name: "record-destroy",
        shows: "what xenstore shows of a guest that is destroyed is what the record says, as in the simulator",
        fits_dom0: false,
        run: records::destroy,
    },
    Scenario { name: "shutdown", shows: "xl shutdown ends tapdom cleanly", fits_dom0: false, run: life::shutdown },
];

/// Judges these scenarios of a fresh world, each by its own verdict and by what it left behind.
pub fn judge(reporter: &Reporter, kind: Backend, names: &[String]) -> Result<()> {
    let chosen = names
        .iter()
        .map(|name| ALL.iter().find(|known| known.name == name).with_context(|| format!("no scenario {name}")))
        .collect::<Result<Vec<_>>>()?;
    let mut world = World::new(reporter, kind)?;
    for (at, scenario) in chosen.iter().enumerate() {
        reporter.say(&Line::Start(scenario.name.to_owned()));
        let started = Instant::now();
        let verdict = (scenario.run)(&mut world).and_then(|()| world.demand_nothing_left());
        let ms = started.elapsed().as_millis() as u64;
        match verdict {
            Ok(()) => reporter.say(&Line::Pass(scenario.name.to_owned(), ms)),
            Err(error) => {
                reporter.say(&Line::Fail(scenario.name.to_owned(), ms, format!("{error:#}")));
                if let Err(error) = world.rebuild(at + 1 < chosen.len()) {
                    bail!("after {} failed, the world could not be made anew: {error:#}", scenario.name);
                }
            }
        }
    }
    Ok(())
}
