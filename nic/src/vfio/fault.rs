//! For the test that the IOMMU guards the machine: a port whose device looks for its packets where nothing is mapped.
#![forbid(unsafe_code)]

use super::dma::DmaSpace;
use super::{open, plan};
use crate::port::{OpenContext, OpenPort, PortError};
use crate::spec::PortSpec;

/// Opens a `vfio:` port all of whose packet addresses are wrong: whatever it receives or sends ends in a fault of the IOMMU. Of no other use.
#[doc(hidden)]
pub fn open_aimed_outside(spec: &PortSpec, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
    open::open_with(plan::plan(spec)?, context, DmaSpace::map_nothing)
}
