//! The table of drivers: the one line that adds one.
#![forbid(unsafe_code)]

use crate::port::{PortError, PortPlan};
use crate::spec::PortSpec;
use crate::{afxdp, mem, pcap, tap, veth, vfio};

/// A kind of port.
pub struct Driver {
    /// What stands before the colon of a specification.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// How a specification of it looks: each form with what it means.
    pub forms: &'static [(&'static str, &'static str)],
    /// Checks a specification without opening or changing anything.
    pub check: fn(&PortSpec) -> Result<Box<dyn PortPlan>, PortError>,
}

/// All drivers.
pub static DRIVERS: &[Driver] =
    &[mem::DRIVER, pcap::DRIVER, afxdp::DRIVER, veth::DRIVER, tap::DRIVER, vfio::DRIVER];

/// Checks a specification with its driver.
pub fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    match DRIVERS.iter().find(|driver| driver.name == spec.driver()) {
        Some(driver) => (driver.check)(spec),
        None => {
            let names: Vec<&str> = DRIVERS.iter().map(|driver| driver.name).collect();
            Err(spec.error(format!("unknown driver \"{}\": choose from {}", spec.driver(), names.join(", "))))
        }
    }
}

/// All forms of all drivers, for `--help`.
pub fn help() -> String {
    let forms = || DRIVERS.iter().flat_map(|driver| driver.forms);
    let mut text = String::from("Port specifications:\n");
    for (form, meaning) in forms() {
        text.push_str(&format!("  {form}\n      {meaning}\n"));
    }
    text
}
