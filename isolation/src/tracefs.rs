//! The kernel's list of trace events: their numbers and the layout of their records.
//!
//! It is a file system of its own, tracefs, that is not mounted everywhere. Where it is not, it is mounted for this process alone, on
//! a descriptor and on no folder: nobody else sees it, and it goes with the descriptor.
#![forbid(unsafe_code)]

use crate::sys;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

/// Where it usually is.
const FOLDERS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// A `format` file has some hundred bytes for each field.
const MAX_BYTES: u64 = 64 << 10;

/// tracefs, found or mounted.
#[derive(Debug)]
pub struct Tracefs(File);

/// One field of a trace event's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the record's beginning.
    pub offset: usize,
    /// Its bytes; 4 for what is elsewhere in the record (`__data_loc`).
    pub bytes: usize,
    /// Whether it only says where in the record its value is, and how long.
    pub elsewhere: bool,
}

/// The layout of a trace event's record, by the names of its fields.
pub type Format = HashMap<String, Field>;

impl Tracefs {
    /// Finds it, or mounts it, which takes CAP_SYS_ADMIN.
    pub fn open() -> io::Result<Self> {
        for folder in FOLDERS {
            if Path::new(folder).join("events").is_dir() {
                return File::open(folder).map(Self);
            }
        }
        sys::mount_alone("tracefs").map(|fd| Self(fd.into())).map_err(|error| {
            io::Error::new(error.kind(), format!("tracefs is not mounted and cannot be ({error})"))
        })
    }

    fn read(&self, path: &str) -> io::Result<Option<String>> {
        let file = match sys::open_below(self.0.as_fd(), path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io::Error::new(error.kind(), format!("cannot read tracefs: {error}"))),
        };
        let mut text = String::new();
        File::from(file).take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(Some(text))
    }

    /// The number of a trace event such as `sched/sched_switch`, for `perf_event_open(2)`; `None` where this kernel has no such event.
    pub fn event_id(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.read(&format!("events/{name}/id"))?.and_then(|text| text.trim().parse().ok()))
    }

    /// The layout of its records.
    pub fn format(&self, name: &str) -> io::Result<Option<Format>> {
        Ok(self.read(&format!("events/{name}/format"))?.map(|text| parse_format(&text)))
    }
}

/// Reads lines such as `field:char prev_comm[16]; offset:8; size:16; signed:0;`. What does not fit is left out.
fn parse_format(text: &str) -> Format {
    let field = |line: &str| {
        let mut parts = line.trim().split(';').map(str::trim);
        let declaration = parts.next()?.strip_prefix("field:")?;
        let mut number = |name: &str| parts.next()?.strip_prefix(name)?.trim().parse::<usize>().ok();
        let (offset, bytes) = (number("offset:")?, number("size:")?);
        let name = declaration.split(' ').next_back()?.split('[').next()?;
        let elsewhere = declaration.starts_with("__data_loc");
        Some((name.to_owned(), Field { offset, bytes, elsewhere }))
    };
    text.lines().filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        let text = "name: irq_handler_entry\nID: 225\nformat:\n\
            \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
            \tfield:int irq;\toffset:8;\tsize:4;\tsigned:1;\n\
            \tfield:__data_loc char[] name;\toffset:12;\tsize:4;\tsigned:0;\n\
            \tfield:char comm[16];\toffset:16;\tsize:16;\tsigned:0;\n\
            \tfield:broken;\n\nprint fmt: \"irq=%d\", REC->irq\n";
        let format = parse_format(text);
        assert_eq!(format.len(), 4);
        assert_eq!(format["irq"], Field { offset: 8, bytes: 4, elsewhere: false });
        assert_eq!(format["name"], Field { offset: 12, bytes: 4, elsewhere: true });
        assert_eq!(format["comm"], Field { offset: 16, bytes: 16, elsewhere: false });
    }

    #[test]
    fn namespace_the_kernels_own_events_are_found() {
        let tracefs = match Tracefs::open() {
            Ok(tracefs) => tracefs,
            Err(error) => {
                eprintln!("SKIPPED namespace_the_kernels_own_events_are_found: needs root: {error}");
                return;
            }
        };
        assert!(tracefs.event_id("sched/sched_switch").unwrap().is_some());
        assert_eq!(tracefs.event_id("sched/no_such_event").unwrap(), None);
        let format = tracefs.format("sched/sched_switch").unwrap().unwrap();
        assert_eq!(format["next_pid"].bytes, 4);
    }
}
