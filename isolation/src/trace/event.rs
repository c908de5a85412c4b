//! What the kernel's records say, as plain data.
#![forbid(unsafe_code)]

use super::ring::Raw;
use crate::tracefs::{Field, Format};
use perf_event_open_sys::bindings as perf;

/// Bits of `misc` of a switch record: out of the CPU, and against the thread's will.
const SWITCH_OUT: u16 = 1 << 13;
const SWITCH_OUT_PREEMPT: u16 = 1 << 14;
/// `PERF_CONTEXT_MAX`: from here up, a stack's entries are marks and no addresses.
const CONTEXT_MAX: u64 = -4095_i64 as u64;

/// A trace event that is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An interrupt vector, by its place in the list of names.
    VectorEntry(usize),
    VectorExit,
    /// The vector that has no exit here.
    IrqWork,
    /// A device's interrupt.
    IrqEntry,
    IrqExit,
    SoftirqEntry,
    SoftirqExit,
    Switch,
    Work,
    Nmi,
    SendToOne,
    SendToMany,
}

/// One thing that happened on a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// CLOCK_MONOTONIC.
    pub(super) time_ns: u64,
    /// The thread that it happened to.
    pub(super) tid: i32,
    pub(super) what: What,
    /// The kernel's stack, innermost first; may be empty.
    pub(super) stack: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    VectorEntry(usize),
    IrqWork,
    IrqEntry {
        irq: i32,
        name: String,
    },
    /// Of a vector or a device's interrupt.
    Exit,
    SoftirqEntry(u32),
    SoftirqExit,
    /// Another thread gets the CPU. Numbers are the kernel's own, not those of a container.
    Switch {
        prev_pid: i32,
        prev_comm: String,
        sleeps: bool,
        next_pid: i32,
        next_comm: String,
    },
    /// A work queue's thread begins to run this function.
    Work {
        function: u64,
    },
    /// A non-maskable interrupt took so long.
    Nmi {
        duration_ns: u64,
    },
    /// An interrupt was sent to other CPUs.
    Send {
        to: Targets,
        callsite: u64,
        callback: u64,
    },
    /// The thread left the CPU, or came back; all that is known without privilege.
    Out {
        preempted: bool,
    },
    In,
    /// The ring had no room for this many.
    Lost(u64),
}

/// The CPUs that an interrupt was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Targets {
    One(u32),
    Many(Vec<u8>),
}

impl Targets {
    pub(super) fn contains(&self, cpu: usize) -> bool {
        match self {
            Self::One(one) => *one as usize == cpu,
            // A mask of longs, little-endian.
            Self::Many(mask) => mask.get(cpu / 8).is_some_and(|byte| byte & (1 << (cpu % 8)) != 0),
        }
    }
}

/// How to read the records of one event.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    pub(super) stack: bool,
    pub(super) format: Format,
}

/// Reads fields off the front of a record.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Reads a record; `layout` knows events by their numbers. `None` where it is of no interest or makes no sense.
pub(super) fn decode<'a>(raw: Raw<'_>, layout: impl FnOnce(u64) -> Option<&'a Layout>) -> Option<Event> {
    let mut body = Cursor(raw.body);
    match raw.kind {
        perf::PERF_RECORD_SAMPLE => {
            let layout = layout(body.u64()?)?;
            body.u32()?;
            let tid = body.u32()? as i32;
            let time_ns = body.u64()?;
            let mut stack = Vec::new();
            if layout.stack {
                for _ in 0..body.u64()? {
                    stack.push(body.u64()?);
                }
                stack.retain(|address| *address < CONTEXT_MAX);
            }
            let bytes = body.u32()? as usize;
            let what = fields(layout, body.take(bytes)?)?;
            Some(Event { time_ns, tid, what, stack })
        }
        perf::PERF_RECORD_LOST => {
            body.u64()?;
            let lost = body.u64()?;
            with_sample_id(body, What::Lost(lost))
        }
        perf::PERF_RECORD_SWITCH => {
            let what = match raw.misc & SWITCH_OUT {
                0 => What::In,
                _ => What::Out { preempted: raw.misc & SWITCH_OUT_PREEMPT != 0 },
            };
            with_sample_id(body, what)
        }
        _ => None,
    }
}

/// Records that are no samples end with the thread, the time and the event's number.
fn with_sample_id(mut body: Cursor<'_>, what: What) -> Option<Event> {
    body.u32()?;
    let tid = body.u32()? as i32;
    Some(Event { time_ns: body.u64()?, tid, what, stack: Vec::new() })
}

fn fields(layout: &Layout, record: &[u8]) -> Option<What> {
    let bytes = |field: &Field| record.get(field.offset..field.offset.checked_add(field.bytes)?);
    let number = |name: &str| -> Option<u64> {
        let bytes = bytes(layout.format.get(name)?)?;
        let mut value = [0; 8];
        value.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_ne_bytes(value))
    };
    // Offset in the low half, bytes in the high one.
    let elsewhere = |name: &str| -> Option<&[u8]> {
        let place = number(name)?;
        let (offset, bytes) = ((place & 0xffff) as usize, (place >> 16 & 0xffff) as usize);
        record.get(offset..offset.checked_add(bytes)?)
    };
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Some(match layout.kind {
        Kind::VectorEntry(vector) => What::VectorEntry(vector),
        Kind::IrqWork => What::IrqWork,
        Kind::VectorExit | Kind::IrqExit => What::Exit,
        Kind::IrqEntry => What::IrqEntry {
            irq: number("irq")? as i32,
            name: elsewhere("name").map_or_else(String::new, text),
        },
        Kind::SoftirqEntry => What::SoftirqEntry(number("vec")? as u32),
        Kind::SoftirqExit => What::SoftirqExit,
        Kind::Switch => What::Switch {
            prev_pid: number("prev_pid")? as i32,
            prev_comm: layout.format.get("prev_comm").and_then(bytes).map_or_else(String::new, text),
            // TASK_RUNNING is 0; the bit above all states says that it was preempted.
            sleeps: number("prev_state")? & 0xff != 0,
            next_pid: number("next_pid")? as i32,
            next_comm: text(bytes(layout.format.get("next_comm")?)?),
        },
        Kind::Work => What::Work { function: number("function")? },
        Kind::Nmi => What::Nmi { duration_ns: number("delta_ns")? },
        Kind::SendToOne => What::Send {
            to: Targets::One(number("cpu")? as u32),
            callsite: number("callsite")?,
            callback: number("callback")?,
        },
        Kind::SendToMany => What::Send {
            to: Targets::Many(elsewhere("cpumask")?.to_vec()),
            callsite: number("callsite")?,
            callback: number("callback")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(kind: Kind, stack: bool, fields: &[(&str, usize, usize, bool)]) -> Layout {
        let field = |&(name, offset, bytes, elsewhere): &(&str, usize, usize, bool)| {
            (name.to_owned(), Field { offset, bytes, elsewhere })
        };
        Layout { kind, stack, format: fields.iter().map(field).collect() }
    }

    fn sample(stack: Option<&[u64]>, raw: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(77_u64.to_ne_bytes());
        body.extend(1_u32.to_ne_bytes());
        body.extend(2_u32.to_ne_bytes());
        body.extend(1000_u64.to_ne_bytes());
        if let Some(stack) = stack {
            body.extend((stack.len() as u64).to_ne_bytes());
            stack.iter().for_each(|address| body.extend(address.to_ne_bytes()));
        }
        body.extend((raw.len() as u32).to_ne_bytes());
        body.extend(raw);
        body
    }

    fn read(layout: &Layout, kind: u32, misc: u16, body: &[u8]) -> Option<Event> {
        decode(Raw { kind, misc, body }, |id| (id == 77).then_some(layout))
    }

    #[test]
    fn a_device_interrupt_has_its_name_and_the_stack_its_addresses() {
        let layout = layout(Kind::IrqEntry, true, &[("irq", 0, 4, false), ("name", 4, 4, true)]);
        let mut raw = 31_u32.to_ne_bytes().to_vec();
        raw.extend((8_u32 | 5 << 16).to_ne_bytes());
        raw.extend(b"eth0\0...");
        let stack = [-128_i64 as u64, 0xffff_ffff_8100_0000];
        let event = read(&layout, perf::PERF_RECORD_SAMPLE, 0, &sample(Some(&stack), &raw)).unwrap();
        assert_eq!((event.time_ns, event.tid), (1000, 2));
        assert_eq!(event.what, What::IrqEntry { irq: 31, name: "eth0".into() });
        assert_eq!(event.stack, [0xffff_ffff_8100_0000]);
    }

    #[test]
    fn switches_without_privilege_say_whether_the_thread_was_preempted() {
        let layout = layout(Kind::Switch, false, &[]);
        let mut body = 1_u32.to_ne_bytes().to_vec();
        body.extend(2_u32.to_ne_bytes());
        body.extend(5_u64.to_ne_bytes());
        body.extend(77_u64.to_ne_bytes());
        let what = |misc| read(&layout, perf::PERF_RECORD_SWITCH, misc, &body).unwrap().what;
        assert_eq!(what(0), What::In);
        assert_eq!(what(SWITCH_OUT), What::Out { preempted: false });
        assert_eq!(what(SWITCH_OUT | SWITCH_OUT_PREEMPT), What::Out { preempted: true });
    }

    #[test]
    fn a_mask_of_cpus_is_read_bit_by_bit() {
        let many = Targets::Many(vec![0b10, 0b1]);
        assert_eq!((0..20).filter(|&cpu| many.contains(cpu)).collect::<Vec<_>>(), [1, 8]);
        assert!(Targets::One(3).contains(3) && !Targets::One(3).contains(2));
    }

    proptest! {
        #[test]
        fn property_no_record_is_followed_out_of_itself(
            kind in prop_oneof![Just(9_u32), Just(2), Just(14), any::<u32>()],
            misc in any::<u16>(),
            body in proptest::collection::vec(any::<u8>(), 0..200),
            known in any::<bool>(),
        ) {
            let layouts = [
                layout(Kind::Switch, true, &[("prev_pid", 24, 4, false), ("prev_state", 32, 8, false), ("next_pid", 56, 4, false), ("next_comm", 40, 16, false)]),
                layout(Kind::SendToMany, false, &[("cpumask", 8, 4, true), ("callsite", 16, 8, false), ("callback", 24, 8, false)]),
                layout(Kind::IrqEntry, false, &[("irq", usize::MAX, 4, false), ("name", 2, 900, true)]),
            ];
            for layout in &layouts {
                let _ = decode(Raw { kind, misc, body: &body }, |_| known.then_some(layout));
            }
        }
    }
}
