//! Why something could not be done: the number that the program ends with, and words that name the thing.

use std::fmt;
use std::path::Path;

use drivers::disk::Error;
use drivers::target::OpenError;
use rustix::io::Errno;

/// An error number of errno(3) and the story of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    errno: i32,
    text: String,
}

impl Failure {
    /// A failure of this kind; `text` says what was wrong with what.
    pub fn new(errno: Errno, text: impl fmt::Display) -> Failure {
        Failure { errno: errno.raw_os_error(), text: text.to_string() }
    }

    /// Wrong usage, or an image that says what cannot be.
    pub fn invalid(text: impl fmt::Display) -> Failure {
        Failure::new(Errno::INVAL, text)
    }

    /// What the system said of a file.
    pub fn of_file(path: &Path, what: &str, errno: Errno) -> Failure {
        Failure::new(errno, format!("{}: {what}: {}", path.display(), std::io::Error::from(errno)))
    }

    /// What a disk said.
    pub fn of_disk(name: &str, error: Error) -> Failure {
        Failure { errno: error.errno().number(), text: format!("{name}: {error}") }
    }

    /// The same, with what went wrong before; the number is that one's.
    pub fn after(self, before: &Failure) -> Failure {
        Failure { errno: before.errno, text: format!("{before}; and {self}") }
    }

    /// What the program ends with: the error number, as vhd-util does.
    pub fn status(&self) -> u8 {
        u8::try_from(self.errno).ok().filter(|status| *status != 0).unwrap_or(5)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        Failure { errno: error.errno.number(), text: error.text }
    }
}
