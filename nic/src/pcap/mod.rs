//! `pcap:` ports: packets that come from a capture file and go to another.
//!
//! For replaying what was seen on a wire, and for tests whose input and output can be compared frame by frame. Neither queue
//! makes a system call: the input is in memory before the worker starts, and the output leaves in blocks by its doorbell.
//!
//! [`Capture`] and [`Writer`] read and write captures without a port.
#![forbid(unsafe_code)]

mod capture;
mod classic;
mod error;
mod fields;
mod ng;
mod open;
mod output;
mod rx;
mod tx;
mod writer;

pub use capture::{Capture, CapturedPacket, Format};
pub use error::CaptureError;
pub use writer::{Writer, file_header, packet_block_bytes, write_packet_block};

use crate::drivers::Driver;

/// Bytes of the longest packet that is read or written: libpcap's limit.
pub const MAX_PACKET_BYTES: usize = 262_144;
/// The only link type that is read.
const LINKTYPE_ETHERNET: u16 = 1;

pub(crate) const DRIVER: Driver = Driver {
    name: "pcap",
    summary: "capture files: pcap and pcapng in, pcapng out",
    forms: &[
        (
            "pcap:in.pcap?speed=wire&loop=1",
            "receives the packets of a capture, at their own pace or with speed=max as fast as they are asked for, \
             loop times (0: forever); what is sent to it is counted and freed",
        ),
        (
            "pcap:in.pcap?out=out.pcapng",
            "the same, and writes what is sent to it, with the time it was sent in ns",
        ),
        (
            "pcap:none?out=out.pcapng",
            "receives nothing, writes what is sent to it (a file of that name: ./none)",
        ),
        (
            "pcap:in.pcap?truncated=accept&partial=deliver",
            "uses the whole packets of a file that is cut off (else an error); delivers packets that were captured \
             only in part as they are (else dropped as rx_truncated)",
        ),
    ],
    check: open::check,
};
