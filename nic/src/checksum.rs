//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in the machine's own byte order, as 16-bit words that have not been folded: the one's complement sum does not
//! mind which order it is formed in, as long as the result is stored in the same.
#![forbid(unsafe_code)]

/// The unfolded sum of 32-bit words.
#[inline(always)]
pub(crate) fn add32(sum: u64, bytes: [u8; 4]) -> u64 {
    sum + u64::from(u32::from_ne_bytes(bytes))
}

/// The unfolded sum of one 16-bit word given as a number.
#[inline(always)]
pub(crate) fn add_number(sum: u64, number: u16) -> u64 {
    sum + u64::from(u16::from_ne_bytes(number.to_be_bytes()))
}

/// The unfolded sum of an even number of bytes.
#[inline(always)]
pub(crate) fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        sum = add32(sum, *word);
    }
    match *rest {
        [] => sum,
        [a] => add32(sum, [a, 0, 0, 0]),
        [a, b] => add32(sum, [a, b, 0, 0]),
        [a, b, c, ..] => add32(sum, [a, b, c, 0]),
    }
}

/// The 16 bits to be stored, in the machine's order, complemented: 0 over a range that holds its own right checksum.
#[inline(always)]
pub(crate) fn finish(sum: u64) -> u16 {
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn property_the_sum_is_that_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(finish(add(0, &bytes)).to_ne_bytes(), plain(&bytes).to_be_bytes());
        }
    }
}
