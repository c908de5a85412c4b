//! How long the packets of a stream are.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// The shortest Ethernet frame, in bytes, without the frame check sequence.
pub const MIN_SIZE: u16 = 60;
/// The longest frame test traffic has, in bytes, without the frame check sequence: a payload of 9000 with two VLAN tags' room less.
pub const MAX_SIZE: u16 = 9018;

/// The simple Internet mix (7 : 4 : 1 of IP packets of 40, 576 and 1500 bytes; RFC 6985 calls it a-g-d), as Ethernet frames,
/// in an order that spreads the long ones.
const IMIX: [u16; 12] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590];

/// Frame sizes, in bytes with the Ethernet header and without the frame check sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All the same.
    Fixed(u16),
    /// Evenly spread from the first to the second, in an order that looks random and is always the same.
    Range(u16, u16),
    /// Seven of 60, four of 590 and one of 1514 bytes.
    Imix,
}

impl Sizes {
    /// The longest there will be.
    pub fn largest(self) -> u16 {
        match self {
            Sizes::Fixed(size) | Sizes::Range(_, size) => size,
            Sizes::Imix => IMIX.into_iter().max().unwrap_or(MAX_SIZE),
        }
    }

    pub(super) fn sequence(self) -> SizeSequence {
        SizeSequence { sizes: self, state: 0 }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.parse::<u16>().ok().filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size));
        match text.split_once('-') {
            None if text == "imix" => Some(Sizes::Imix),
            None => number(text).map(Sizes::Fixed),
            Some((least, most)) => match (number(least), number(most)) {
                (Some(least), Some(most)) if least <= most => Some(Sizes::Range(least, most)),
                _ => None,
            },
        }
        .ok_or_else(|| {
            format!("choose a frame size from {MIN_SIZE} to {MAX_SIZE}, a range such as 60-1514, or imix")
        })
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(size) => write!(f, "{size}-byte frames"),
            Sizes::Range(least, most) => write!(f, "frames of {least} to {most} bytes"),
            Sizes::Imix => f.write_str("frames of 60, 590 and 1514 bytes (imix)"),
        }
    }
}

/// The size of one packet after the other.
#[derive(Debug)]
pub(super) struct SizeSequence {
    sizes: Sizes,
    state: u64,
}

impl SizeSequence {
    #[inline(always)]
    pub(super) fn next(&mut self) -> u16 {
        match self.sizes {
            Sizes::Fixed(size) => size,
            Sizes::Range(least, most) => {
                // A Weyl sequence through a multiplier: cheap, and no size is favoured.
                self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (self.state ^ (self.state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32;
                least + ((mixed * (u64::from(most - least) + 1)) >> 32) as u16
            }
            Sizes::Imix => {
                self.state = (self.state + 1) % IMIX.len() as u64;
                IMIX[self.state as usize]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused_in_words() {
        assert_eq!("64".parse(), Ok(Sizes::Fixed(64)));
        assert_eq!("60-9018".parse(), Ok(Sizes::Range(60, 9018)));
        assert_eq!("imix".parse(), Ok(Sizes::Imix));
        for wrong in ["59", "9019", "", "-", "100-", "-100", "200-100", "60-9019", "IMIX", "64k", "65600"] {
            assert!(wrong.parse::<Sizes>().unwrap_err().contains("60 to 9018"), "{wrong}");
        }
    }

    #[test]
    fn a_range_is_evenly_spread() {
        let mut sizes = Sizes::Range(100, 103).sequence();
        let mut seen = [0; 4];
        (0..40_000).for_each(|_| seen[usize::from(sizes.next()) - 100] += 1);
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
        let mut edges = Sizes::Range(60, 9018).sequence();
        assert!((0..100_000).all(|_| (60..=9018).contains(&edges.next())));
    }

    #[test]
    fn imix_has_its_shares() {
        let mut sizes = Sizes::Imix.sequence();
        let seen: Vec<u16> = (0..1200).map(|_| sizes.next()).collect();
        let count = |size| seen.iter().filter(|seen| **seen == size).count();
        assert_eq!((count(60), count(590), count(1514)), (700, 400, 100));
    }
}
