//! `mem:` ports: packets that come from and go to memory. No NIC, no kernel, no privilege: they run anywhere, and what
//! they cost is the floor of what the framework costs.
#![forbid(unsafe_code)]

mod null;
mod port;

use crate::drivers::Driver;
use crate::port::{PortError, PortPlan};
use crate::spec::PortSpec;

pub(crate) const DRIVER: Driver = Driver {
    name: "mem",
    summary: "in-memory ports: generator, sink, cable",
    forms: &[(
        "mem:null?size=64&queues=1",
        "receives frames nobody filled, as fast as they are asked for; sends into nothing",
    )],
    check,
};

fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    match spec.target() {
        "null" => null::check(spec),
        other => Err(spec.error(format!("unknown in-memory port \"{other}\": choose mem:null"))),
    }
}
