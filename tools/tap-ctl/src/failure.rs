//! Why something could not be done: the number that the program ends with, and words that name the thing.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// An error number of errno(3) and the story of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    errno: Errno,
    text: String,
}

impl Failure {
    /// A failure of this kind; `text` says what was wrong with what.
    pub fn new(errno: Errno, text: impl fmt::Display) -> Failure {
        Failure { errno, text: text.to_string() }
    }

    /// What a server or the system said by number alone.
    pub fn of_number(number: i32, text: impl fmt::Display) -> Failure {
        match number {
            // An exit status has eight bits, and 0 is no failure.
            1..=255 => Failure::new(Errno::from_raw_os_error(number), text),
            _ => Failure::new(Errno::IO, format!("{text} (error {number})")),
        }
    }

    /// The error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// What the program ends with: the error number, as tap-ctl does.
    pub fn status(&self) -> u8 {
        u8::try_from(self.errno.raw_os_error()).unwrap_or(Errno::IO.raw_os_error() as u8)
    }

    /// The same with what was being done in front.
    pub fn while_doing(self, what: impl fmt::Display) -> Failure {
        Failure { text: format!("{what}: {}", self.text), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let errno = match error.kind() {
            io::ErrorKind::UnexpectedEof => Errno::CONNRESET,
            // A socket's own time-out says EAGAIN.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Errno::TIMEDOUT,
            io::ErrorKind::InvalidData => Errno::PROTO,
            _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
        };
        Failure::new(errno, plain(&error))
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::new(errno, words(errno.raw_os_error()))
    }
}

/// strerror's words for a number.
pub fn words(number: i32) -> String {
    plain(&io::Error::from_raw_os_error(number))
}

/// An error's words without the number that Rust puts behind them.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_error_number() {
        assert_eq!(Failure::new(Errno::NODEV, "x").status(), 19);
        assert_eq!(Failure::of_number(114, "x").status(), 114);
        for odd in [0, -2, 256, i32::MAX, i32::MIN] {
            let failure = Failure::of_number(odd, "it failed");
            assert_eq!((failure.status(), failure.to_string()), (5, format!("it failed (error {odd})")));
        }
    }

    #[test]
    fn words_name_what_was_being_done() {
        let failure = Failure::from(Errno::NOENT).while_doing("opening /dev/xen/xenbus");
        assert_eq!(failure.to_string(), "opening /dev/xen/xenbus: No such file or directory");
        assert_eq!(failure.status(), 2);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::WouldBlock)).errno(), Errno::TIMEDOUT);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::UnexpectedEof)).errno(), Errno::CONNRESET);
        assert_eq!(Failure::from(io::Error::other("odd")).errno(), Errno::IO);
    }
}
