//! One worker's way to the exception ports.
#![forbid(unsafe_code)]

use super::class::Class;
use super::limits::{Buckets, PuntLimits};
use nic::{DropReason, Packet, PortId};

/// By the port a packet came in by: its exception port, and what may still go there.
#[derive(Default)]
pub(crate) struct Punting(Vec<Option<(PortId, Buckets)>>);

impl Punting {
    /// Punts what came in by `port` to `exception`.
    pub(crate) fn add(&mut self, port: PortId, exception: PortId, limits: PuntLimits) {
        let index = usize::from(port.0);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some((exception, Buckets::new(limits)));
    }

    /// Where the packet may go, or why it may not.
    pub(crate) fn admit(&mut self, packet: &Packet) -> Result<PortId, DropReason> {
        let Some(Some((exception, buckets))) = self.0.get_mut(usize::from(packet.port().0)) else {
            return Err(DropReason::NoExceptionPort);
        };
        match buckets.admit(Class::of(packet.data())) {
            true => Ok(*exception),
            false => Err(DropReason::PuntRate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic::{Pool, PoolConfig};

    #[test]
    fn a_packet_goes_to_the_exception_port_of_the_port_it_came_in_by() {
        let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let mut punting = Punting::default();
        punting.add(PortId(1), PortId(3), "other=0".parse().unwrap());
        let mut packet = pool.allocate(60).unwrap();
        packet.data_mut().fill(0);
        assert_eq!(punting.admit(&packet), Err(DropReason::NoExceptionPort));
        packet.set_port(PortId(1));
        assert_eq!(punting.admit(&packet), Err(DropReason::PuntRate));
        packet.data_mut()[12..14].copy_from_slice(&0x0806_u16.to_be_bytes());
        assert_eq!(punting.admit(&packet), Ok(PortId(3)));
        packet.set_port(PortId(9));
        assert_eq!(punting.admit(&packet), Err(DropReason::NoExceptionPort));
    }
}
