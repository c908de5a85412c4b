//! A test frame: Ethernet, IPv4 and UDP, by whose addresses and ports a NIC tells flows; then who it is, and content that follows from that. What a
//! forwarder may change, the Ethernet addresses, is not looked at.
#![forbid(unsafe_code)]

/// The shortest frame that has room for all of it, and that no NIC makes longer.
pub(super) const SHORTEST: usize = 60;
/// The longest that a NIC may be asked to take.
pub(super) const LONGEST: usize = 9018;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const HEADERS: usize = ETHERNET + IPV4 + UDP;
/// Magic, run, flow, number, length.
const IDENTITY: usize = 4 + 2 + 2 + 4 + 2;
const MAGIC: [u8; 4] = *b"IsoW";

/// Which frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Frames of a run before are nobody's. Of the two numbers of a run, the even one goes there and the odd one back, between other
    /// addresses: nothing must know a flow by the one that goes the other way.
    pub(super) run: u16,
    pub(super) flow: u16,
    /// Its number in its flow.
    pub(super) number: u32,
}

/// What a received frame turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// As it was sent.
    Whole(Identity),
    /// One of ours, but not as it was sent.
    Corrupt(Identity),
    /// Not one of ours.
    Stranger,
}

/// The byte at `place` of a frame's content.
fn content(identity: Identity, place: usize) -> u8 {
    let seed = (identity.number ^ u32::from(identity.flow) << 20).wrapping_mul(0x9E37_79B1) >> 24;
    (seed as u8).wrapping_add(place as u8)
}

/// Fills `frame`, of [`SHORTEST`] to [`LONGEST`] bytes.
pub(super) fn write(frame: &mut [u8], identity: Identity, destination: [u8; 6]) {
    let length = frame.len();
    let Identity { run, flow, number } = identity;
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0xFF, 1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[ETHERNET..ETHERNET + IPV4];
    ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 0, 10, 2, 0, 1]);
    // Many NICs look at the addresses of UDP alone, since fragments have no ports.
    ip[14..16].copy_from_slice(&flow.to_be_bytes());
    ip[2..4].copy_from_slice(&((length - ETHERNET) as u16).to_be_bytes());
    (ip[13], ip[17]) = if run & 1 == 0 { (1, 2) } else { (4, 3) };
    let sum: u32 = ip.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!((folded & 0xFFFF) + (folded >> 16)) as u16).to_be_bytes());
    let udp = &mut frame[ETHERNET + IPV4..HEADERS];
    udp[..2].copy_from_slice(&flow.wrapping_mul(40503).to_be_bytes());
    udp[2..4].copy_from_slice(&flow.wrapping_add(1024).to_be_bytes());
    udp[4..6].copy_from_slice(&((length - ETHERNET - IPV4) as u16).to_be_bytes());
    // No checksum, which IPv4 allows.
    udp[6..8].fill(0);
    let rest = &mut frame[HEADERS..];
    rest[..4].copy_from_slice(&MAGIC);
    rest[4..6].copy_from_slice(&run.to_be_bytes());
    rest[6..8].copy_from_slice(&flow.to_be_bytes());
    rest[8..12].copy_from_slice(&number.to_be_bytes());
    rest[12..14].copy_from_slice(&(length as u16).to_be_bytes());
    for (place, byte) in rest[IDENTITY..].iter_mut().enumerate() {
        *byte = content(identity, place);
    }
}

/// Reads a frame. `scratch` is room to work in.
pub(super) fn read(frame: &[u8], scratch: &mut Vec<u8>) -> Read {
    let Some(rest) = frame.get(HEADERS..HEADERS + IDENTITY) else { return Read::Stranger };
    if rest[..4] != MAGIC {
        return Read::Stranger;
    }
    let identity = Identity {
        run: u16::from_be_bytes([rest[4], rest[5]]),
        flow: u16::from_be_bytes([rest[6], rest[7]]),
        number: u32::from_be_bytes([rest[8], rest[9], rest[10], rest[11]]),
    };
    let length = usize::from(u16::from_be_bytes([rest[12], rest[13]]));
    if length != frame.len() || !(SHORTEST..=LONGEST).contains(&length) {
        return Read::Corrupt(identity);
    }
    scratch.resize(length, 0);
    write(scratch, identity, [0; 6]);
    if frame[12..] == scratch[12..] { Read::Whole(identity) } else { Read::Corrupt(identity) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_any_byte_behind_the_addresses_counts() {
        let mut scratch = Vec::new();
        for length in [SHORTEST, 61, 1514, LONGEST] {
            let identity = Identity { run: 3, flow: 7, number: 70_000 };
            let mut frame = vec![0; length];
            write(&mut frame, identity, [2; 6]);
            assert_eq!(read(&frame, &mut scratch), Read::Whole(identity));
            for place in 0..length.min(200) {
                frame[place] ^= 0x10;
                let whole = read(&frame, &mut scratch) == Read::Whole(identity);
                assert_eq!(whole, place < 12, "byte {place} of {length}");
                frame[place] ^= 0x10;
            }
            frame.push(0);
            assert_eq!(read(&frame, &mut scratch), Read::Corrupt(identity));
            assert_eq!(read(&frame[..HEADERS + 3], &mut scratch), Read::Stranger);
        }
    }

    #[test]
    fn the_header_checksum_is_right() {
        let mut frame = vec![0; 1514];
        write(&mut frame, Identity { run: 0, flow: 0, number: 0 }, [2; 6]);
        let words =
            frame[14..34].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF);
    }
}
