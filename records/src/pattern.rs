//! Content that can be told from any other: each eight bytes follow from a seed and their place, so any range can be
//! made again by whoever knows the seed, and a block that comes back from the wrong place is noticed.

/// The bytes that belong at `offset` of the content with this seed. Both ends may be anywhere.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = mix(seed ^ (at / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes();
        let skip = (at % 8) as usize;
        let count = rest.len().min(8 - skip);
        rest[..count].copy_from_slice(&word[skip..skip + count]);
        rest = &mut rest[count..];
        at += count as u64;
    }
}

/// Where the first byte differs from the content with this seed.
pub fn difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = vec![0; bytes.len()];
    fill(seed, offset, &mut expected);
    if expected == bytes {
        return None;
    }
    expected.iter().zip(bytes).position(|(one, other)| one != other).map(|at| offset + at as u64)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
pub fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_the_same_content() {
        let mut whole = [0; 100];
        fill(7, 1000, &mut whole);
        for from in 0..20 {
            let mut part = [0; 50];
            fill(7, 1000 + from as u64, &mut part);
            assert_eq!(part, whole[from..from + 50]);
        }
    }

    #[test]
    fn a_wrong_byte_and_a_wrong_place_are_found() {
        let mut bytes = [0; 64];
        fill(7, 512, &mut bytes);
        assert_eq!(difference(7, 512, &bytes), None);
        assert!(difference(7, 1024, &bytes).is_some());
        assert!(difference(8, 512, &bytes).is_some());
        bytes[33] ^= 1;
        assert_eq!(difference(7, 512, &bytes), Some(512 + 33));
    }
}
