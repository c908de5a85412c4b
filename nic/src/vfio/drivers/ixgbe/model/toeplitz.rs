//! The hash of receive-side scaling, and what Microsoft publishes to check it against.
#![forbid(unsafe_code)]

/// For each set bit of the input, the 32 bits of the key that start there.
pub(super) fn hash(key: &[u8; 40], input: impl IntoIterator<Item = u8>) -> u32 {
    let mut hash = 0;
    for (at, byte) in input.into_iter().enumerate() {
        let window =
            u64::from_be_bytes(std::array::from_fn(|ahead| key.get(at + ahead).copied().unwrap_or(0)));
        for bit in 0..8 {
            if byte & (0x80 >> bit) != 0 {
                hash ^= (window >> (32 - bit)) as u32;
            }
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The key of the published examples.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// "Verifying the RSS Hash Calculation", Microsoft's driver documentation: destination, source, hash with and without ports.
    const IPV4: [(&str, u16, &str, u16, u32, u32); 5] = [
        ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323e_8fc2, 0x51cc_c178),
        ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xd718_262a, 0xc626_b0ea),
        ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xd2d0_a5de, 0x5c2b_394a),
        ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x8298_9176, 0xafc7_327f),
        ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5d18_09c5, 0x10e8_28a2),
    ];
    const IPV6: [(&str, u16, &str, u16, u32, u32); 3] = [
        ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2cc1_8cd5, 0x4020_7d3d),
        ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0f0c_461c, 0xdde5_1bbf),
        (
            "fe80::200:f8ff:fe21:67cf",
            38024,
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    #[test]
    fn it_agrees_with_the_published_values() {
        let check = |source: &[u8], destination: &[u8], ports: [u16; 2], without: u32, with: u32| {
            let addresses: Vec<u8> = [source, destination].concat();
            assert_eq!(hash(&KEY, addresses.iter().copied()), without);
            let ports = ports.into_iter().flat_map(u16::to_be_bytes);
            assert_eq!(hash(&KEY, addresses.iter().copied().chain(ports)), with);
        };
        for (destination, to, source, from, without, with) in IPV4 {
            let [source, destination] =
                [source, destination].map(|text| text.parse::<Ipv4Addr>().unwrap().octets());
            check(&source, &destination, [from, to], without, with);
        }
        for (destination, to, source, from, without, with) in IPV6 {
            let [source, destination] =
                [source, destination].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
            check(&source, &destination, [from, to], without, with);
        }
    }
}
