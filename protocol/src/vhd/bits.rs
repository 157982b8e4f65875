//! Bitmaps: a bit for every sector of a block, a batmap's bit for every block. The first bit is a byte's highest.
//!
//! All counts and positions are ours and lie inside the bytes given; these panic if they do not.

/// Bits that are looked at in one step.
const STEP: u32 = u64::BITS;

/// Whether bit `at` is set.
#[inline]
pub fn bit(bits: &[u8], at: u32) -> bool {
    bits[(at / 8) as usize] & (0x80 >> (at % 8)) != 0
}

/// Sets the bits from `from` to before `to`.
#[inline]
pub fn set_range(bits: &mut [u8], from: u32, to: u32) {
    if is_byte(from, to) {
        bits[(from / 8) as usize] = 0xff;
        return;
    }
    change(bits, from, to, |byte, mask| *byte |= mask);
}

/// Clears the bits from `from` to before `to`.
pub fn clear_range(bits: &mut [u8], from: u32, to: u32) {
    change(bits, from, to, |byte, mask| *byte &= !mask);
}

/// What bit `from` is, and how many bits from there on, before `to`, are the same: at least 1.
///
/// # Panics
/// If `from` is not before `to`.
#[inline]
pub fn run(bits: &[u8], from: u32, to: u32) -> (bool, u32) {
    assert!(from < to && to.div_ceil(8) as usize <= bits.len(), "a run of bits that are there");
    let set = bit(bits, from);
    let flip = if set { u64::MAX } else { 0 };
    let mut at = from;
    while at < to {
        let skip = at % 8;
        let other = (word(bits, (at / 8) as usize) ^ flip) << skip;
        let same = other.leading_zeros().min(STEP - skip);
        at += same;
        if same < STEP - skip {
            break;
        }
    }
    (set, at.min(to) - from)
}

/// Whether all bits from `from` to before `to` are set.
#[inline(always)]
pub fn all(bits: &[u8], from: u32, to: u32) -> bool {
    match is_byte(from, to) {
        true => bits[(from / 8) as usize] == 0xff,
        false => all_of_any(bits, from, to),
    }
}

fn all_of_any(bits: &[u8], from: u32, to: u32) -> bool {
    if from >= to {
        return true;
    }
    let ((first, head), (last, tail)) = ends(from, to);
    match first == last {
        true => !bits[first] & head & tail == 0,
        false => !bits[first] & head == 0 && !bits[last] & tail == 0 && are(&bits[first + 1..last], 0xff),
    }
}

/// Whether no bit is set.
#[inline]
pub fn none(bits: &[u8]) -> bool {
    are(bits, 0)
}

/// Whether all bytes are this one.
#[inline]
fn are(bytes: &[u8], byte: u8) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| *word == [byte; 8]) && rest.iter().all(|other| *other == byte)
}

/// How many of the bits from `from` to before `to` are set.
pub fn ones(bits: &[u8], from: u32, to: u32) -> u32 {
    let mut count = 0;
    let mut at = from;
    while at < to {
        let skip = at % 8;
        let step = (STEP - skip).min(to - at);
        let bits = word(bits, (at / 8) as usize) << skip >> (STEP - step);
        count += bits.count_ones();
        at += step;
    }
    count
}

/// Eight bytes from `byte` on as a number, the first highest; what is beyond the end is zero.
#[inline]
fn word(bits: &[u8], byte: usize) -> u64 {
    let bytes = &bits[byte..];
    u64::from_be_bytes(bytes.first_chunk().copied().unwrap_or_else(|| {
        let mut tail = [0; 8];
        tail[..bytes.len()].copy_from_slice(bytes);
        tail
    }))
}

/// Whether a range is one byte, as for a page that a guest reads or writes: by far the most.
#[inline]
fn is_byte(from: u32, to: u32) -> bool {
    from.is_multiple_of(8) && to.wrapping_sub(from) == 8
}

/// The first and the last byte of a range of bits that is not empty, and those of their bits that are in it.
#[inline]
fn ends(from: u32, to: u32) -> ((usize, u8), (usize, u8)) {
    let last = to - 1;
    (((from / 8) as usize, 0xff >> (from % 8)), ((last / 8) as usize, 0xff << (7 - last % 8)))
}

/// Does `with` to every byte of a range of bits and the mask of those of its bits that are meant.
fn change(bits: &mut [u8], from: u32, to: u32, with: impl Fn(&mut u8, u8)) {
    if from >= to {
        return;
    }
    let ((first, head), (last, tail)) = ends(from, to);
    if first == last {
        return with(&mut bits[first], head & tail);
    }
    with(&mut bits[first], head);
    bits[first + 1..last].iter_mut().for_each(|byte| with(byte, 0xff));
    with(&mut bits[last], tail);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same bits as one wide number, the first highest.
    fn wide(bits: &[u8; 16]) -> u128 {
        u128::from_be_bytes(*bits)
    }

    fn mask(from: u32, to: u32) -> u128 {
        let ones = |count: u32| u128::MAX.checked_shl(128 - count).unwrap_or(0);
        ones(to) & !ones(from)
    }

    #[test]
    fn every_range() {
        for pattern in [0u8, 0xff, 0xa5, 0x01, 0x80] {
            for from in 0..=128 {
                for to in from..=128 {
                    let before = [pattern; 16];
                    let mut bits = before;
                    set_range(&mut bits, from, to);
                    assert_eq!(wide(&bits), wide(&before) | mask(from, to));
                    bits = before;
                    clear_range(&mut bits, from, to);
                    assert_eq!(wide(&bits), wide(&before) & !mask(from, to));
                    assert_eq!(all(&before, from, to), wide(&before) & mask(from, to) == mask(from, to));
                    let inside = mask(from, to);
                    assert!(all(&inside.to_be_bytes(), from, to));
                    assert_eq!(all(&(!inside).to_be_bytes(), from, to), from == to);
                    assert_eq!(none(&inside.to_be_bytes()), from == to);
                }
            }
        }
    }

    #[test]
    fn nothing_before_nothing() {
        let mut bits = [0; 1];
        set_range(&mut bits, 5, 4);
        set_range(&mut bits, 8, 8);
        assert_eq!((bits, ones(&bits, 5, 4), all(&bits, 5, 4)), ([0], 0, true));
        assert!(all(&bits, 0, 0) && none(&[]));
    }

    #[test]
    #[should_panic(expected = "a run of bits that are there")]
    fn no_run_of_nothing() {
        run(&[0; 8], 4, 4);
    }

    #[test]
    #[should_panic(expected = "a run of bits that are there")]
    fn no_run_beyond_the_end() {
        run(&[0; 8], 4, 65);
    }

    proptest! {
        #[test]
        fn runs(runs in prop::collection::vec(1u32..300, 1..12), from in 0u32..300, short in 0u32..300) {
            let total: u32 = runs.iter().sum();
            let mut bits = std::vec![0u8; total.div_ceil(8) as usize];
            let mut at = 0;
            for (index, length) in runs.iter().enumerate() {
                if index % 2 == 1 {
                    set_range(&mut bits, at, at + length);
                }
                at += length;
            }
            let (from, to) = (from % total, total - short % total);
            let (from, to) = (from.min(to - 1), to);
            let (mut end, mut index) = (0, 0);
            while end + runs[index] <= from {
                end += runs[index];
                index += 1;
            }
            let expected = (end + runs[index]).min(to) - from;
            prop_assert_eq!(run(&bits, from, to), (index % 2 == 1, expected));
            prop_assert!((from..from + expected).all(|at| bit(&bits, at) == (index % 2 == 1)));
            let by_bit = (from..to).filter(|at| bit(&bits, *at)).count();
            prop_assert_eq!(ones(&bits, from, to), by_bit as u32);
        }
    }
}
