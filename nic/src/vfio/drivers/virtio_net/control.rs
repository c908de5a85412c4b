//! The control virtqueue (VIRTIO 1.2, 5.1.6.5): one command at a time, each waited for, within a bound. For the control thread alone.
#![forbid(unsafe_code)]

use super::abi::ctrl;
use super::ring::{Ring, RingConfig, Segment};
use super::transport::Areas;
use crate::vfio::dma::{DmaBuffer, DmaSpace};
use crate::vfio::nic::NicError;
use crate::vfio::registers::TailRegister;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the acknowledgement is in the memory of a command, and so how long a command may be.
const ACK: usize = 4088;
/// No answer yet.
const PENDING: u8 = 0xFF;

/// It, whatever its layout.
pub(super) trait Control: Send {
    /// Where the device finds it.
    fn areas(&self) -> Areas;

    /// Makes it as new, while the device is stopped; notifications go there.
    fn restart(&mut self, notify: TailRegister);

    /// Gives a command, and waits for its answer until `deadline`.
    fn command(&mut self, command: [u8; 2], data: &[u8], deadline: Instant) -> Result<(), NicError>;
}

/// How long a command may take when a port is opened.
pub(super) const COMMAND_TIME: Duration = super::patience(5000);

/// One of a layout.
pub(super) struct ControlQueue<R: Ring> {
    ring: R,
    memory: DmaBuffer,
    index: u16,
    size: u32,
    /// The number of the next descriptor.
    next: u32,
    notify: Option<TailRegister>,
    /// A command has got no answer: whatever comes now is not to be trusted.
    silent: bool,
}

impl<R: Ring> ControlQueue<R> {
    /// An empty one, queue `index` of the device.
    pub(super) fn new(space: &Arc<DmaSpace>, index: u16, config: RingConfig) -> io::Result<Self> {
        Ok(Self {
            ring: R::new(space, config)?,
            memory: space.allocate(ACK + 1)?,
            index,
            size: config.size.into(),
            next: 0,
            notify: None,
            silent: false,
        })
    }

    fn failed(&mut self, command: [u8; 2], why: &str) -> NicError {
        self.silent = true;
        NicError::Device(format!(
            "its control queue {why} (class {}, command {}): reset the device",
            command[0], command[1]
        ))
    }
}

impl<R: Ring> Control for ControlQueue<R> {
    fn areas(&self) -> Areas {
        self.ring.areas()
    }

    fn restart(&mut self, notify: TailRegister) {
        self.ring.reset();
        (self.next, self.silent, self.notify) = (0, false, Some(notify));
    }

    fn command(&mut self, command: [u8; 2], data: &[u8], deadline: Instant) -> Result<(), NicError> {
        if self.silent || data.len() + command.len() > ACK {
            return Err(self.failed(command, "takes no command any more"));
        }
        let bytes = command.iter().chain(data);
        bytes.enumerate().for_each(|(offset, byte)| self.memory.write8(offset, *byte));
        self.memory.write8(ACK, PENDING);
        let head = self.next;
        let segment = |more| Segment { head, more, writable: !more };
        let length = (command.len() + data.len()) as u32;
        self.ring.put_segment(head, self.memory.iova(), length, segment(true));
        let ack = self.memory.iova() + ACK as u64;
        self.ring.put_segment(head.wrapping_add(1), ack, 1, segment(false));
        self.next = head.wrapping_add(2);
        if self.ring.publish(self.next)
            && let Some(notify) = &self.notify
        {
            notify.write16(self.index);
        }
        let used = loop {
            if self.ring.look(1).is_err() {
                return Err(self.failed(command, "says it has done more than it was told"));
            }
            if let Some(used) = self.ring.used() {
                break used;
            }
            if Instant::now() >= deadline {
                return Err(self.failed(command, "does not answer"));
            }
            std::thread::yield_now();
        };
        self.ring.consume(1, 2);
        if used.id != head & (self.size - 1) {
            return Err(self.failed(command, "answers what it was not told"));
        }
        match self.memory.read8(ACK) {
            ctrl::OK => Ok(()),
            _ => Err(NicError::Device(format!(
                "it refuses a command of its control queue (class {}, command {})",
                command[0], command[1]
            ))),
        }
    }
}
