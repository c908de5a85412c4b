//! Reading and writing captures: every variant of the formats, damage in every place, and the word of Wireshark's tools.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod captures;

use captures::*;
use nic::pcap::{Capture, CaptureError, Format, Writer};
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;

fn parse(bytes: Vec<u8>) -> Capture {
    let capture = Capture::parse(bytes).unwrap();
    assert!(capture.cut_off().is_none(), "{:?}", capture.cut_off());
    capture
}

#[track_caller]
fn assert_holds(capture: &Capture, frames: &[Vec<u8>], resolution_ns: u64) {
    assert_eq!(capture.len(), frames.len());
    for (index, (packet, frame)) in capture.packets().zip(frames).enumerate() {
        assert_eq!((packet.data, packet.original_len), (&frame[..], frame.len()), "packet {index}");
        assert_eq!(packet.time_ns, time_ns(index) / resolution_ns * resolution_ns, "packet {index}");
    }
}

#[test]
fn all_four_kinds_of_pcap_are_read() {
    let frames = mixed_frames();
    for order in Order::BOTH {
        for nanoseconds in [false, true] {
            let capture = parse(pcap(order, nanoseconds, &frames));
            assert_eq!(capture.format(), Format::Pcap);
            assert_holds(&capture, &frames, if nanoseconds { 1 } else { 1000 });
        }
    }
}

#[test]
fn pcapng_is_read_in_both_byte_orders_also_in_one_file() {
    let frames = mixed_frames();
    for order in Order::BOTH {
        let capture = parse(pcapng(order, &frames));
        assert_eq!(capture.format(), Format::Pcapng);
        assert_holds(&capture, &frames, 1);
    }
    let mut both = pcapng(Order::BOTH[0], &frames);
    both.extend(pcapng(Order::BOTH[1], &frames));
    assert_eq!(parse(both).len(), 2 * frames.len());
}

/// A capture of one packet with these ticks on an interface with these options.
fn stamp(options: &[(u16, Vec<u8>)], ticks: u64) -> u64 {
    let order = Order { big: false };
    let packet = enhanced_packet(order, 0, ticks, &[0; 60], 60);
    let capture = parse([section(order), interface(order, 1, 0, options), packet].concat());
    capture.packets().next().unwrap().time_ns
}

#[test]
fn time_resolutions_and_offsets_are_heeded() {
    let resolution = |value: u8| (9, vec![value]);
    assert_eq!(stamp(&[], 5_000_001), 5_000_001_000, "microseconds where nothing is said");
    assert_eq!(stamp(&[resolution(9)], 5_000_001), 5_000_001);
    assert_eq!(stamp(&[resolution(3)], 5_001), 5_001_000_000);
    assert_eq!(stamp(&[resolution(0)], 5), 5_000_000_000);
    assert_eq!(stamp(&[resolution(12)], 5_000_001), 5_000);
    assert_eq!(stamp(&[resolution(0x80 | 20)], 3 << 19), 1_500_000_000, "2^-20 seconds");
    assert_eq!(stamp(&[resolution(9), (14, 7_i64.to_le_bytes().to_vec())], 1), 7_000_000_001);
    assert_eq!(stamp(&[resolution(9), (14, (-1_i64).to_le_bytes().to_vec())], 1), 0, "held to 1970");
    assert_eq!(stamp(&[resolution(0), (14, i64::MAX.to_le_bytes().to_vec())], u64::MAX), u64::MAX);
    for absurd in [127, 0xFF] {
        assert_eq!(stamp(&[resolution(absurd)], 1000), 0);
    }
}

#[test]
fn several_interfaces_and_other_blocks_are_understood() {
    let order = Order { big: true };
    let name_resolution = block(order, 4, &[0; 4]);
    let custom = block(order, 0x0BAD, &[1; 33]);
    let old_packet = {
        let fields = [order.u32(1 << 16 | 9), order.u32(0), order.u32(44), order.u32(60), order.u32(60)];
        block(order, 2, &[&fields.concat()[..], &[8; 60]].concat())
    };
    let simple = block(order, 3, &[&order.u32(1000)[..], &[9; 96]].concat());
    let capture = parse(
        [
            section(order),
            name_resolution,
            interface(order, 1, 96, &[(9, vec![9])]),
            interface(order, 1, 0, &[(2, b"eth1".to_vec()), (9, vec![6])]),
            // Not Ethernet, and nobody's.
            interface(order, 113, 0, &[]),
            enhanced_packet(order, 0, 42, &[7; 61], 61),
            custom,
            old_packet,
            simple,
        ]
        .concat(),
    );
    let packets: Vec<_> =
        capture.packets().map(|packet| (packet.time_ns, packet.data.len(), packet.data[0])).collect();
    assert_eq!(packets, [(42, 61, 7), (44_000, 60, 8), (44_000, 96, 9)]);
    assert_eq!(capture.packets().last().unwrap().original_len, 1000);
}

#[test]
fn the_frame_check_sequence_is_taken_off() {
    let order = Order { big: false };
    let with_fcs = 1 | 1 << 26 | 2 << 28;
    let mut classic = pcap_header(order, false, with_fcs);
    classic.extend(pcap_record(order, 1000, 0, &[5; 64], 64));
    classic.extend(pcap_record(order, 1000, 0, &[5; 62], 64));
    let mut ng = [section(order), interface(order, 1, 0, &[(13, vec![4])])].concat();
    ng.extend(enhanced_packet(order, 0, 0, &[5; 64], 64));
    ng.extend(enhanced_packet(order, 0, 0, &[5; 62], 64));
    for bytes in [classic, ng] {
        let capture = parse(bytes);
        let lengths: Vec<_> =
            capture.packets().map(|packet| (packet.data.len(), packet.original_len)).collect();
        assert_eq!(lengths, [(60, 60), (60, 60)]);
    }
}

#[test]
fn a_capture_cut_off_anywhere_says_where_and_keeps_the_whole_packets() {
    let frames = [vec![1; 60], vec![2; 61], vec![3; 62]];
    let order = Order { big: false };
    let classic = (pcap(order, true, &frames), 24, 16);
    let ng = (pcapng(order, &frames), 28 + 32, 32);
    for (bytes, header, overhead) in [classic, ng] {
        let padding = if overhead == 32 { 4 } else { 1 };
        let mut ends = vec![header];
        for frame in &frames {
            ends.push(ends.last().unwrap() + overhead + frame.len().next_multiple_of(padding));
        }
        assert_eq!(ends[3], bytes.len());
        for length in 1..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
            let at_a_border = ends.contains(&length) || length == 28 && header == 60;
            match Capture::parse(bytes[..length].to_vec()) {
                Ok(capture) => {
                    assert_eq!(capture.len(), whole, "{length} bytes");
                    assert_eq!(capture.cut_off().is_none(), at_a_border, "{length} bytes");
                    if let Some(CaptureError::Truncated { offset, left, .. }) = capture.cut_off() {
                        assert_eq!((*offset, offset + left), (ends[whole], length));
                    }
                }
                Err(CaptureError::Truncated { whole: 0, .. }) => {
                    assert!(whole == 0 && !at_a_border, "{length} bytes")
                }
                Err(CaptureError::UnknownFormat(_)) => assert!(length < 4),
                Err(error) => panic!("{length} bytes: {error}"),
            }
        }
    }
}

#[test]
fn damage_is_described() {
    let (order, frame) = (Order { big: false }, vec![6; 60]);
    let two = [frame.clone(), frame.clone()];
    let with = |mut bytes: Vec<u8>, at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let (classic, ng) = (pcap(order, false, &two), pcapng(order, &two));
    let second = (24 + 76, 60 + 92);
    let cases: &[(Vec<u8>, &str)] = &[
        (vec![], "empty file"),
        (b"hello".to_vec(), "begins with the bytes 68 65 6c 6c"),
        (vec![0x1F, 0x8B, 8, 0], "compressed (gzip)"),
        (with(classic.clone(), 4, &[9]), "format version 9.4"),
        (with(classic.clone(), 20, &[113]), "link type 113 at byte 20, and only Ethernet"),
        (
            with(classic.clone(), second.0 + 8, &[0xFF; 4]),
            "corrupt at byte 100, behind 1 whole packets: 4294967295 captured",
        ),
        (with(classic, second.0 + 4, &[0x40, 0x42, 0x0F, 0]), "1000000000 ns behind its seconds"),
        (with(ng.clone(), 8, &[1, 2, 3, 4]), "byte order 0x04030201"),
        (with(ng.clone(), 12, &[2]), "format version 2"),
        (
            with(ng.clone(), second.1 + 4, &[0; 4]),
            "corrupt at byte 152, behind 1 whole packets: a block of type 0x6 of 0 bytes",
        ),
        (with(ng.clone(), second.1 + 4, &[93]), "a block of type 0x6 of 93 bytes"),
        (with(ng.clone(), second.1 + 4, &[0xFC, 0xFF, 0xFF, 0xFF]), "of 4294967292 bytes"),
        (with(ng.clone(), second.1 + 88, &[96]), "a block of 92 bytes that calls itself 96 long at its end"),
        (with(ng.clone(), second.1 + 8, &[1]), "interface 1, which is not described"),
        (with(ng.clone(), second.1 + 20, &[61]), "61 captured bytes where there is room for 60"),
        (with(ng.clone(), 28 + 8, &[113]), "link type 113 at byte 28"),
        (with(ng, 28 + 18, &[200]), "option 9 of 200 bytes goes past its block"),
    ];
    for (bytes, words) in cases {
        let error = Capture::parse(bytes.clone()).expect_err(words);
        let (text, advice) = (error.to_string(), error.advice(Path::new("in.pcap")));
        assert!(text.contains(words), "{text}");
        assert!(!advice.is_empty() && !text.contains('\n') && !advice.contains('\n'));
    }
}

/// Runs one of Wireshark's tools; `None` where it is not installed.
fn tool(test: &str, name: &str, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(name).args(arguments).output() else {
        eprintln!("SKIPPED {test}: no {name}: install wireshark-common and tshark");
        return None;
    };
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn wireshark_agrees_on_what_is_written_and_read() {
    const TEST: &str = "wireshark_agrees_on_what_is_written_and_read";
    let frames = mixed_frames();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut writer = Writer::new(Vec::new()).unwrap();
    for (index, frame) in frames.iter().enumerate() {
        writer.write(time_ns(index) + 7, frame).unwrap();
    }
    let bytes = writer.finish().unwrap();
    std::fs::write(path("ours.pcapng"), &bytes).unwrap();
    let fields = ["-e", "frame.time_epoch", "-e", "frame.len", "-e", "frame.cap_len"];
    if let Some(text) =
        tool(TEST, "tshark", &[&["-r", &path("ours.pcapng"), "-T", "fields"][..], &fields].concat())
    {
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), frames.len());
        for (index, (line, frame)) in lines.iter().zip(&frames).enumerate() {
            let (time_ns, length) = (time_ns(index) + 7, frame.len());
            let stamp = format!("{}.{:09}", time_ns / 1_000_000_000, time_ns % 1_000_000_000);
            assert_eq!(*line, format!("{stamp}\t{length}\t{length}"));
        }
    }
    for (format, offset_ns, resolution_ns) in [("pcapng", 7, 1), ("nsecpcap", 7, 1), ("pcap", 7, 1000)] {
        let converted = path(format);
        if tool(TEST, "editcap", &["-F", format, &path("ours.pcapng"), &converted]).is_none() {
            return;
        }
        let capture = parse(std::fs::read(converted).unwrap());
        assert_eq!(capture.format() == Format::Pcapng, format == "pcapng");
        for (index, (packet, frame)) in capture.packets().zip(&frames).enumerate() {
            assert_eq!(packet.data, frame);
            assert_eq!(packet.time_ns, (time_ns(index) + offset_ns) / resolution_ns * resolution_ns);
        }
        assert_eq!(capture.len(), frames.len());
    }
}

/// A valid capture of any of the formats.
fn any_capture() -> impl Strategy<Value = Vec<u8>> {
    let frames = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..6);
    (frames, any::<bool>(), 0..3).prop_map(|(frames, big, format)| match format {
        0 => pcap(Order { big }, false, &frames),
        1 => pcap(Order { big }, true, &frames),
        _ => pcapng(Order { big }, &frames),
    })
}

/// Parsing ends without a panic, and every packet lies inside the file.
fn survive(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let length = bytes.len();
    if let Ok(capture) = Capture::parse(bytes) {
        prop_assert!(capture.len() <= length / 16);
        for packet in capture.packets() {
            prop_assert!(packet.data.len() <= packet.original_len && packet.data.len() <= length);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn property_what_is_written_is_read_back(
        packets in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..3000)), 0..20)
    ) {
        let mut writer = Writer::new(Vec::new()).unwrap();
        packets.iter().for_each(|(time_ns, data)| writer.write(*time_ns, data).unwrap());
        let capture = Capture::parse(writer.finish().unwrap()).unwrap();
        prop_assert!(capture.cut_off().is_none());
        let read: Vec<_> = capture.packets().map(|packet| (packet.time_ns, packet.data.to_vec())).collect();
        prop_assert_eq!(read, packets);
    }

    #[test]
    fn property_any_bytes_are_survived(magic in 0..6_usize, mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let magics = [0xA1B2_C3D4, 0xD4C3_B2A1, 0xA1B2_3C4D, 0x4D3C_B2A1, 0x0A0D_0D0A_u32];
        if let (Some(start), Some(magic)) = (bytes.first_chunk_mut(), magics.get(magic)) {
            *start = magic.to_be_bytes();
        }
        survive(bytes)?;
    }

    #[test]
    fn property_damaged_captures_are_survived(
        mut bytes in any_capture(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survive(bytes)?;
    }
}
