//! `mem:` ports: packets that come from and go to memory. No NIC, no kernel, no privilege: they run anywhere, and what
//! they cost is the floor of what the framework costs.
#![forbid(unsafe_code)]

mod cable;
mod generator;
mod null;
mod port;
mod sink;

use crate::drivers::Driver;
use crate::port::{PortError, PortPlan};
use crate::spec::PortSpec;

pub(crate) const DRIVER: Driver = Driver {
    name: "mem",
    summary: "in-memory ports: generator, sink, cable",
    forms: &[
        (
            "mem:gen?size=64&flows=1&rate=0&count=0&queues=1&check=on",
            "receives numbered test packets made on the spot (size: bytes from 60 to 9018, a range such as 60-1514, or imix; rate: packets a second; 0: no limit); checks what it sends",
        ),
        ("mem:sink?flows=1&queues=1&check=on", "receives nothing; checks what it sends"),
        (
            "mem:cable?name=0&queues=1&ring=1024",
            "two ports of the same name are the ends of a cable: what one sends the other receives",
        ),
        (
            "mem:null?size=64&queues=1",
            "receives frames nobody filled, as fast as they are asked for; sends into nothing",
        ),
    ],
    check,
};

fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    match spec.target() {
        "cable" => cable::check(spec),
        "gen" => generator::check(spec),
        "sink" => sink::check(spec),
        "null" => null::check(spec),
        other => Err(spec.error(format!(
            "unknown in-memory port \"{other}\": choose mem:gen, mem:sink, mem:cable or mem:null"
        ))),
    }
}
