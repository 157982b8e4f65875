//! Linux's error numbers, as control messages carry them.

/// An error number. Only those that this domain answers with; what a peer sends stays a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of errno(3)")]
#[repr(i32)]
pub enum Errno {
    EPERM = 1,
    ENOENT = 2,
    ESRCH = 3,
    EINTR = 4,
    EIO = 5,
    E2BIG = 7,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EBUSY = 16,
    EEXIST = 17,
    ENODEV = 19,
    EINVAL = 22,
    ENOSPC = 28,
    EROFS = 30,
    ENAMETOOLONG = 36,
    ENOSYS = 38,
    EPROTO = 71,
    EPROTONOSUPPORT = 93,
    EOPNOTSUPP = 95,
    ESHUTDOWN = 108,
    ETIMEDOUT = 110,
    EALREADY = 114,
    ENOMEDIUM = 123,
    EMEDIUMTYPE = 124,
}

impl Errno {
    /// The number.
    pub const fn number(self) -> i32 {
        self as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        // Printed by a C program from errno.h.
        let numbers = [
            (Errno::EPERM, 1),
            (Errno::ESRCH, 3),
            (Errno::E2BIG, 7),
            (Errno::ENODEV, 19),
            (Errno::ENAMETOOLONG, 36),
            (Errno::EPROTO, 71),
            (Errno::EMEDIUMTYPE, 124),
        ];
        for (errno, number) in numbers {
            assert_eq!(errno.number(), number);
        }
    }
}
