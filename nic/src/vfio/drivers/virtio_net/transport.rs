//! The modern PCI transport (VIRTIO 1.2, 4.1): finds the device's structures by its vendor capabilities, and does what is done through them.
//!
//! A capability says where in which BAR a structure lies. Both are the device's words: a structure must lie inside its BAR, and every access inside
//! the structure. All waits end.
#![forbid(unsafe_code)]

use super::abi::{cap, common, pci, status};
use crate::vfio::function::PciFunction;
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::NicError;
use crate::vfio::registers::{Registers, TailRegister};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a device may take for a reset.
const RESET_TIME: Duration = super::patience(1000);
/// Reads of a configuration that changes meanwhile (4.1.4.3.2: again until the generation stays the same).
const CONFIG_READS: usize = 32;
/// Capabilities that a list may have: there is room for no more in 256 bytes.
const CAPABILITIES: usize = 48;

/// A structure in a BAR. Places outside it read as all ones, and take no writes.
#[derive(Clone)]
struct Window {
    registers: Registers,
    offset: usize,
    bytes: usize,
}

macro_rules! access {
    ($read:ident $write:ident $type:ty) => {
        #[allow(dead_code)] // not every width is written
        fn $read(&self, offset: usize) -> $type {
            match self.place(offset, size_of::<$type>()) {
                Some(place) => self.registers.$read(place),
                None => <$type>::MAX,
            }
        }

        #[allow(dead_code)]
        fn $write(&self, offset: usize, value: $type) {
            if let Some(place) = self.place(offset, size_of::<$type>()) {
                self.registers.$write(place, value);
            }
        }
    };
}

impl Window {
    /// Where in the BAR `bytes` at `offset` of the structure lie, if they do, and are aligned there.
    fn place(&self, offset: usize, bytes: usize) -> Option<usize> {
        let inside = offset.checked_add(bytes)? <= self.bytes;
        let place = self.offset + offset;
        (inside && place.is_multiple_of(bytes)).then_some(place)
    }

    access!(read8 write8 u8);
    access!(read16 write16 u16);
    access!(read32 write32 u32);
}

/// One structure as its capability describes it.
#[derive(Clone, Copy)]
struct Capability {
    at: u16,
    kind: u32,
    bar: u32,
    offset: u32,
    bytes: u32,
}

/// The vendor capabilities, in the order of the device's preference; no more than there can be.
fn capabilities(function: &dyn PciFunction) -> Vec<Capability> {
    let mut found = Vec::new();
    if function.read_config(pci::STATUS, 2) & pci::STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = function.read_config(pci::CAPABILITIES, 1) as u16 & 0xFC;
    for _ in 0..CAPABILITIES {
        // The header ends at 0x40; a list that leads elsewhere has ended.
        if !(0x40..=0xF0).contains(&at) {
            break;
        }
        let head = function.read_config(at, 4);
        let length = head >> 16 & 0xFF;
        if head & 0xFF == pci::VENDOR_SPECIFIC && length >= u32::from(cap::BYTES) + 4 {
            found.push(Capability {
                at,
                kind: function.read_config(at + cap::CFG_TYPE, 1),
                bar: function.read_config(at + cap::BAR, 1),
                offset: function.read_config(at + cap::OFFSET, 4),
                bytes: function.read_config(at + cap::BYTES, 4),
            });
        }
        at = (head >> 8) as u16 & 0xFC;
    }
    found
}

/// The first structure of a kind that lies in a BAR, and has `least` bytes.
fn window(
    function: &dyn PciFunction,
    found: &[Capability],
    kind: u32,
    least: usize,
) -> Option<(Window, Capability)> {
    found.iter().filter(|capability| capability.kind == kind && capability.bar < 6).find_map(|capability| {
        let registers = function.bar(capability.bar as u8).ok()?;
        let (offset, bytes) = (capability.offset as usize, capability.bytes as usize);
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= registers.length());
        (inside && bytes >= least).then(|| (Window { registers, offset, bytes }, *capability))
    })
}

/// Where a queue's three areas are, for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Areas {
    /// Descriptors.
    pub(super) desc: u64,
    /// What the driver writes: `avail`, or its event suppression.
    pub(super) driver: u64,
    /// What the device writes: `used`, or its event suppression.
    pub(super) device: u64,
}

/// The device's structures.
pub(super) struct Transport {
    function: Arc<dyn PciFunction>,
    common: Window,
    notify: Window,
    notify_multiplier: u32,
    /// Tells of changes of the configuration.
    interrupt: Option<LinkInterrupt>,
    /// Read by nobody: interrupts have vectors, or do not come. It must be there all the same.
    _isr: Window,
    config: Option<Window>,
}

impl Transport {
    /// Finds them.
    pub(super) fn find(function: &Arc<dyn PciFunction>) -> Result<Self, NicError> {
        let found = capabilities(&**function);
        let need = |kind, least, name: &str| {
            window(&**function, &found, kind, least).ok_or_else(|| {
                NicError::Device(if found.is_empty() {
                    "it has the legacy interface only: start it as a modern device (QEMU: disable-legacy=on)".into()
                } else {
                    format!("its virtio capability for {name} is missing, or lies outside its BAR: this is no virtio 1.x device")
                })
            })
        };
        let (common, _) = need(cap::COMMON_CFG, common::BYTES, "the common configuration")?;
        let (notify, capability) = need(cap::NOTIFY_CFG, 2, "notifications")?;
        let (isr, _) = need(cap::ISR_CFG, 1, "the interrupt status")?;
        let config = window(&**function, &found, cap::DEVICE_CFG, 1).map(|(window, _)| window);
        let notify_multiplier = function.read_config(capability.at + cap::NOTIFY_OFF_MULTIPLIER, 4);
        Ok(Self {
            function: Arc::clone(function),
            common,
            notify,
            notify_multiplier,
            interrupt: None,
            _isr: isr,
            config,
        })
    }

    /// The function behind it.
    pub(super) fn function(&self) -> &Arc<dyn PciFunction> {
        &self.function
    }

    /// The device status.
    pub(super) fn status(&self) -> u8 {
        self.common.read8(common::DEVICE_STATUS)
    }

    /// Sets bits of it.
    pub(super) fn add_status(&self, bits: u8) {
        self.common.write8(common::DEVICE_STATUS, self.status() | bits);
    }

    /// Begins a reset; it is over when the status reads 0 (4.1.4.3.1).
    pub(super) fn begin_reset(&self) {
        self.common.write8(common::DEVICE_STATUS, 0);
    }

    /// Resets it, and waits for the end.
    pub(super) fn reset(&self) -> Result<(), NicError> {
        self.begin_reset();
        let deadline = Instant::now() + RESET_TIME;
        loop {
            match self.status() {
                0 => return Ok(()),
                status::GONE => {
                    return Err(NicError::Device(
                        "its registers read all ones: it is not there any more".into(),
                    ));
                }
                status if Instant::now() >= deadline => {
                    return Err(NicError::Device(format!(
                        "it has not ended a reset within {RESET_TIME:?} (status {status:#04x}): remove and rescan it"
                    )));
                }
                _ => std::thread::yield_now(),
            }
        }
    }

    /// What the device offers.
    pub(super) fn device_features(&self) -> u64 {
        let half = |select| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Says what the driver takes; false where the device does not agree (3.1.1, steps 4 to 6).
    pub(super) fn set_features(&self, features: u64) -> bool {
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write32(common::DRIVER_FEATURE_SELECT, select);
            self.common.write32(common::DRIVER_FEATURE, half);
        }
        self.add_status(status::FEATURES_OK);
        let status = self.status();
        status & status::FEATURES_OK != 0 && status & status::FAILED == 0
    }

    /// How many queues it has.
    pub(super) fn queues(&self) -> u16 {
        self.common.read16(common::NUM_QUEUES)
    }

    /// The most entries that queue `index` can have; 0 where there is no such queue.
    pub(super) fn max_queue_size(&self, index: u16) -> u16 {
        self.common.write16(common::QUEUE_SELECT, index);
        match self.common.read16(common::QUEUE_SIZE) {
            u16::MAX => 0,
            size => size,
        }
    }

    /// Enables queue `index`, and gives its notification register.
    pub(super) fn enable_queue(&self, index: u16, size: u16, areas: Areas) -> Result<TailRegister, NicError> {
        let common = &self.common;
        common.write16(common::QUEUE_SELECT, index);
        common.write16(common::QUEUE_SIZE, size);
        common.write16(common::QUEUE_MSIX_VECTOR, common::NO_VECTOR);
        for (offset, address) in [
            (common::QUEUE_DESC, areas.desc),
            (common::QUEUE_DRIVER, areas.driver),
            (common::QUEUE_DEVICE, areas.device),
        ] {
            // In halves: 4.1.3.1 lets a driver do so, and devices need not take more at once.
            common.write32(offset, address as u32);
            common.write32(offset + 4, (address >> 32) as u32);
        }
        let register = usize::from(common.read16(common::QUEUE_NOTIFY_OFF))
            .checked_mul(self.notify_multiplier as usize)
            .and_then(|offset| self.notify.place(offset, 2))
            .ok_or_else(|| {
                NicError::Device(format!(
                    "the notification register of its queue {index} lies outside its BAR: the device is broken"
                ))
            })?;
        common.write16(common::QUEUE_ENABLE, 1);
        Ok(TailRegister::new(Arc::clone(&self.notify.registers), register))
    }

    /// Enables MSI-X vector 0, where it is to be had; a change of the configuration then has it.
    pub(super) fn enable_interrupt(&mut self) {
        self.interrupt = Some(LinkInterrupt::enable(&*self.function));
    }

    /// No interrupt any more.
    pub(super) fn silence(&mut self) {
        self.interrupt = None;
        self.watch_config();
    }

    /// What interrupts are counted in.
    pub(super) fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.interrupt.iter().flat_map(LinkInterrupt::events).collect()
    }

    /// Has a change of the configuration interrupt (4.1.5.1.2). A device that has not the means for it says NO_VECTOR, and there is none.
    pub(super) fn watch_config(&self) {
        let is_on = self.interrupt.as_ref().is_some_and(LinkInterrupt::is_on);
        let vector = if is_on { 0 } else { common::NO_VECTOR };
        self.common.write16(common::CONFIG_MSIX_VECTOR, vector);
        if is_on && self.common.read16(common::CONFIG_MSIX_VECTOR) != vector {
            tracing::debug!(
                "no vector for changes of its configuration, so its link is looked at from time to time"
            );
        }
    }

    /// Reads the device configuration, of one generation (2.5.1); `None` where it does not stand still, or is not there.
    pub(super) fn config<T>(&self, read: impl Fn(&Config<'_>) -> T) -> Option<T> {
        let config = Config(self.config.as_ref()?);
        for _ in 0..CONFIG_READS {
            let before = self.common.read8(common::CONFIG_GENERATION);
            let value = read(&config);
            if self.common.read8(common::CONFIG_GENERATION) == before {
                return Some(value);
            }
        }
        None
    }
}

/// The device configuration, while it is read.
pub(super) struct Config<'a>(&'a Window);

impl Config<'_> {
    pub(super) fn read8(&self, offset: usize) -> u8 {
        self.0.read8(offset)
    }

    pub(super) fn read16(&self, offset: usize) -> u16 {
        self.0.read16(offset)
    }

    pub(super) fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }
}
