//! The device of software that the driver is tested against: registers, configuration space, and both layouts of virtqueues, each written from the
//! specification and not from the driver. It reaches memory through a [`ModelIommu`], which counts what it must not touch.
#![forbid(unsafe_code)]

mod function;

use super::abi::{common, feature, status};
use crate::vfio::dma::DmaSpace;
use crate::vfio::function::PciFunction;
use crate::vfio::model::{ModelIommu, ModelMsix};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const COMMON: usize = 0;
const ISR: usize = 0x1000;
const CONFIG: usize = 0x2000;
const NOTIFY: usize = 0x3000;
const BAR_BYTES: usize = 0x4000;
const MULTIPLIER: usize = 4;
const HEADER: usize = 12;

/// A buffer that the driver has made available.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) id: u16,
    /// Address, length, and whether the device may write.
    pub(super) segments: Vec<(u64, u32, bool)>,
}

#[derive(Default)]
struct ModelQueue {
    size: u16,
    enabled: bool,
    vector: u16,
    addresses: [u64; 3],
    /// Split: entries taken and used so far. Packed: descriptors, which run on without a bound.
    taken: u32,
    used: u32,
    /// Taken, and put back.
    back: Vec<Chain>,
}

/// The state of the device.
pub(super) struct Inner {
    pub(super) offered: u64,
    pub(super) driver: u64,
    pub(super) status: u8,
    /// What is read instead of a register, if anything is: offset and value in, value out.
    pub(super) distort: Option<Box<dyn FnMut(usize, u32) -> u32 + Send>>,
    pub(super) config: [u8; 24],
    config_vector: u16,
    /// Has no memory for vectors.
    pub(super) refuses_vectors: bool,
    msix: ModelMsix,
    pub(super) generation: u8,
    /// A generation more at each read.
    pub(super) restless: bool,
    pub(super) pci: Vec<u8>,
    pub(super) bus_master: bool,
    /// It answers no more.
    pub(super) gone: bool,
    /// It does not end a reset.
    pub(super) hangs: bool,
    /// Commands that came by the control queue.
    pub(super) commands: Vec<Vec<u8>>,
    /// What is answered to them; nothing where it is `None`.
    pub(super) answer: Option<u8>,
    /// Whether the driver is to notify of new buffers.
    pub(super) wants_notifications: bool,
    pub(super) notifications: u64,
    pub(super) resets: u64,
    /// Complains of what a driver must not do; not while it does worse itself.
    pub(super) strict: bool,
    max_size: u16,
    select: [u32; 2],
    queue_select: u16,
    queues: Vec<ModelQueue>,
    iommu: ModelIommu,
}

/// The device; clones are the same one.
#[derive(Clone)]
pub(super) struct Model {
    inner: Arc<Mutex<Inner>>,
    pub(super) iommu: ModelIommu,
    space: Arc<DmaSpace>,
}

/// All that the driver knows.
pub(super) const ALL: u64 = feature::VERSION_1
    | feature::ACCESS_PLATFORM
    | feature::RING_PACKED
    | feature::EVENT_IDX
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::MAC
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_VLAN
    | feature::MQ
    | feature::CTRL_MAC_ADDR
    | feature::RSS
    | feature::SPEED_DUPLEX
    | feature::ORDER_PLATFORM;

impl Model {
    /// One with so many pairs of queues, of `max_size` descriptors each.
    pub(super) fn new(offered: u64, pairs: u16, max_size: u16) -> Self {
        let (iommu, space) = ModelIommu::new();
        let mut config = [0; 24];
        config[..6].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        config[6] = 1;
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..12].copy_from_slice(&9000_u16.to_le_bytes());
        config[12..16].copy_from_slice(&10_000_u32.to_le_bytes());
        config[17] = 40;
        config[18..20].copy_from_slice(&128_u16.to_le_bytes());
        config[20..24].copy_from_slice(&0x1FF_u32.to_le_bytes());
        let inner = Inner {
            offered,
            driver: 0,
            status: 0,
            distort: None,
            config,
            config_vector: common::NO_VECTOR,
            refuses_vectors: false,
            msix: ModelMsix::default(),
            generation: 0,
            restless: false,
            pci: function::configuration_space(),
            bus_master: false,
            gone: false,
            hangs: false,
            commands: Vec::new(),
            answer: Some(0),
            wants_notifications: true,
            notifications: 0,
            resets: 0,
            strict: true,
            max_size,
            select: [0; 2],
            queue_select: 0,
            queues: (0..2 * pairs + 1).map(|_| ModelQueue { size: max_size, ..Default::default() }).collect(),
            iommu: iommu.clone(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), iommu, space }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether changes of the configuration have a vector.
    pub(super) fn has_config_vector(&self) -> bool {
        self.lock().config_vector != common::NO_VECTOR
    }

    /// The link comes up or goes, and the configuration is another.
    pub(super) fn set_link(&self, up: bool) {
        let mut inner = self.lock();
        inner.config[6] = up.into();
        inner.generation = inner.generation.wrapping_add(1);
        if inner.config_vector != common::NO_VECTOR && inner.bus_master {
            inner.msix.send(inner.config_vector.into());
        }
    }

    /// As the driver gets it.
    pub(super) fn function(&self) -> Arc<dyn PciFunction> {
        Arc::new(self.clone())
    }
}

impl Inner {
    fn queue(&mut self) -> Option<&mut ModelQueue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    fn read(&mut self, offset: usize, bytes: usize) -> u32 {
        if self.gone || offset + bytes > BAR_BYTES {
            return u32::MAX >> (32 - 8 * bytes);
        }
        let number = self.queue_select;
        let max = self.max_size;
        let value = match offset - COMMON {
            common::DEVICE_FEATURE => (self.offered >> (32 * self.select[0].min(1))) as u32,
            common::CONFIG_MSIX_VECTOR => self.config_vector.into(),
            common::NUM_QUEUES => self.queues.len() as u32,
            common::DEVICE_STATUS => self.status.into(),
            common::CONFIG_GENERATION => {
                self.generation = self.generation.wrapping_add(self.restless.into());
                self.generation.into()
            }
            common::QUEUE_SIZE => self.queue().map_or(0, |queue| queue.size.min(max)).into(),
            common::QUEUE_NOTIFY_OFF => number.into(),
            place if (CONFIG..CONFIG + 24).contains(&place) => {
                let from = place - CONFIG;
                let mut word = [0; 4];
                word[..bytes].copy_from_slice(&self.config[from..from + bytes]);
                u32::from_le_bytes(word)
            }
            _ => 0,
        };
        match &mut self.distort {
            Some(distort) => distort(offset, value) & u32::MAX >> (32 - 8 * bytes),
            None => value,
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        if self.gone {
            return;
        }
        match offset - COMMON {
            common::DEVICE_FEATURE_SELECT => self.select[0] = value,
            common::DRIVER_FEATURE_SELECT => self.select[1] = value,
            common::DRIVER_FEATURE => {
                let shift = 32 * self.select[1].min(1);
                self.driver = self.driver & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
            }
            common::CONFIG_MSIX_VECTOR => {
                self.config_vector = if self.refuses_vectors { common::NO_VECTOR } else { value as u16 };
            }
            common::DEVICE_STATUS if value == 0 => self.reset(),
            common::DEVICE_STATUS => {
                let unknown = self.driver & !self.offered != 0;
                self.status = value as u8 & if unknown { !status::FEATURES_OK } else { !0 };
            }
            common::QUEUE_SELECT => self.queue_select = value as u16,
            common::QUEUE_SIZE => self.with_queue(|queue| queue.size = value as u16),
            common::QUEUE_MSIX_VECTOR => self.with_queue(|queue| queue.vector = value as u16),
            common::QUEUE_ENABLE => self.with_queue(|queue| queue.enabled = value == 1),
            place @ common::QUEUE_DESC..common::BYTES => self.with_queue(|queue| {
                let address = &mut queue.addresses[(place - common::QUEUE_DESC) / 8];
                let shift = 8 * (place % 8);
                *address = *address & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
            }),
            place if place >= NOTIFY => self.notified((place - NOTIFY) / MULTIPLIER, value),
            _ => {}
        }
    }

    fn with_queue(&mut self, change: impl FnOnce(&mut ModelQueue)) {
        if let Some(queue) = self.queue() {
            change(queue);
        }
    }

    fn reset(&mut self) {
        if self.hangs {
            return;
        }
        self.resets += 1;
        (self.status, self.driver, self.config_vector) = (0, 0, common::NO_VECTOR);
        let size = self.max_size;
        self.queues.iter_mut().for_each(|queue| *queue = ModelQueue { size, ..Default::default() });
    }

    fn notified(&mut self, queue: usize, value: u32) {
        self.notifications += 1;
        assert!(!self.strict || queue as u32 == value, "the register is that of the queue");
        if self.driver & feature::CTRL_VQ != 0 && queue == self.control_index() {
            self.serve_control();
        }
    }

    /// Where the control queue is (5.1.2).
    fn control_index(&self) -> usize {
        let many = self.driver & (feature::MQ | feature::RSS) != 0;
        if many { self.queues.len() - 1 } else { 2 }
    }

    fn is_packed(&self) -> bool {
        self.driver & feature::RING_PACKED != 0
    }

    /// It may use memory, and the queue.
    fn works(&self, queue: usize) -> bool {
        let ready = self.queues.get(queue).is_some_and(|queue| queue.enabled && queue.size > 0);
        self.bus_master && self.status & status::DRIVER_OK != 0 && ready
    }

    fn read_memory<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.iommu.read(address, &mut bytes);
        bytes
    }

    fn descriptor(&self, queue: usize, number: u32) -> (u64, u32, [u16; 2]) {
        let queue = &self.queues[queue];
        let bytes: [u8; 16] =
            self.read_memory(queue.addresses[0] + 16 * u64::from(number % u32::from(queue.size)));
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        (address, u32::from_le_bytes(bytes[8..12].try_into().unwrap()), [word(12), word(14)])
    }

    /// The wrap counter of a running number of descriptors (2.8.1).
    fn wrap(&self, queue: usize, number: u32) -> bool {
        (number / u32::from(self.queues[queue].size)).is_multiple_of(2)
    }

    /// The next available buffer.
    pub(super) fn pop(&mut self, queue: usize) -> Option<Chain> {
        if !self.works(queue) {
            return None;
        }
        if let Some(chain) = self.queues[queue].back.pop() {
            return Some(chain);
        }
        if self.is_packed() { self.pop_packed(queue) } else { self.pop_split(queue) }
    }

    /// Says so on all queues, whatever is available on them.
    pub(super) fn want_no_notifications(&mut self) {
        self.wants_notifications = false;
        for number in 0..self.queues.len() {
            self.say_what_is_wanted(number);
        }
    }

    /// Writes where the driver looks whether it wants to be notified of what is available next.
    fn say_what_is_wanted(&mut self, number: usize) {
        if !self.works(number) {
            return;
        }
        let (queue, wants) = (&self.queues[number], self.wants_notifications);
        let (size, taken, place) = (queue.size, queue.taken, queue.addresses[2]);
        let events = self.driver & feature::EVENT_IDX != 0;
        if self.is_packed() {
            let flags: u16 = match (wants, events) {
                (false, _) => 1,
                (true, false) => 0,
                (true, true) => 2,
            };
            let next = (taken % u32::from(size)) as u16 | u16::from(self.wrap(number, taken)) << 15;
            let word = u32::from(next) | u32::from(flags) << 16;
            self.iommu.write(place, &word.to_le_bytes());
        } else if events {
            // The next one is to be told of, or none for long.
            let event = if wants { taken as u16 } else { (taken as u16).wrapping_sub(0x4000) };
            self.iommu.write(place + 4 + 8 * u64::from(size), &event.to_le_bytes());
        } else {
            self.iommu.write(place, &u16::from(!wants).to_le_bytes());
        }
    }

    fn pop_split(&mut self, number: usize) -> Option<Chain> {
        let queue = &self.queues[number];
        let (avail, size, taken) = (queue.addresses[1], queue.size, queue.taken);
        let index = u16::from_le_bytes(self.read_memory(avail + 2));
        if index == taken as u16 {
            self.say_what_is_wanted(number);
            return None;
        }
        let ring = avail + 4 + 2 * u64::from(taken as u16 % size);
        let id = u16::from_le_bytes(self.read_memory(ring));
        let mut chain = Chain { id, segments: Vec::new() };
        let mut next = id;
        loop {
            let (address, length, [flags, following]) = self.descriptor(number, next.into());
            chain.segments.push((address, length, flags & 2 != 0));
            if flags & 1 == 0 || chain.segments.len() > usize::from(size) {
                break;
            }
            next = following;
        }
        self.queues[number].taken = taken.wrapping_add(1);
        Some(chain)
    }

    fn pop_packed(&mut self, number: usize) -> Option<Chain> {
        let mut chain = Chain::default();
        let mut at = self.queues[number].taken;
        loop {
            let (address, length, [id, flags]) = self.descriptor(number, at);
            let wrap = self.wrap(number, at);
            let available = (flags & 0x80 != 0) == wrap && (flags & 0x8000 != 0) != wrap;
            if !available {
                assert!(!self.strict || chain.segments.is_empty(), "a chain becomes available as a whole");
                self.say_what_is_wanted(number);
                return None;
            }
            at = at.wrapping_add(1);
            chain.segments.push((address, length, flags & 2 != 0));
            chain.id = id;
            if flags & 1 == 0 || chain.segments.len() > usize::from(self.queues[number].size) {
                break;
            }
        }
        self.queues[number].taken = at;
        Some(chain)
    }

    /// Uses a buffer.
    pub(super) fn push(&mut self, number: usize, chain: &Chain, written: u32) {
        self.push_raw(number, chain.id.into(), written, chain.segments.len() as u32, 1);
    }

    /// Writes a used entry of any content, and goes on by so many descriptors and entries.
    pub(super) fn push_raw(&mut self, number: usize, id: u32, written: u32, descriptors: u32, entries: u16) {
        if !self.works(number) {
            return;
        }
        let queue = &self.queues[number];
        let (size, used, device) = (u32::from(queue.size), queue.used, queue.addresses[2]);
        if self.is_packed() {
            let place = queue.addresses[0] + 16 * u64::from(used % size);
            let flags: u16 = if self.wrap(number, used) { 0x8080 } else { 0 };
            // The flags last.
            self.iommu.write(place + 8, &written.to_le_bytes());
            self.iommu.write(place + 12, &(id as u16).to_le_bytes());
            self.iommu.write(place + 14, &flags.to_le_bytes());
            self.queues[number].used = used.wrapping_add(descriptors);
        } else {
            let place = device + 4 + 8 * u64::from(used as u16 % size as u16);
            self.iommu.write(place, &id.to_le_bytes());
            self.iommu.write(place + 4, &written.to_le_bytes());
            let index = (used as u16).wrapping_add(entries);
            self.iommu.write(device + 2, &index.to_le_bytes());
            self.queues[number].used = index.into();
        }
    }

    /// Puts a packet into receive queue `pair`; false where there are not enough buffers.
    pub(super) fn deliver(&mut self, pair: usize, packet: &[u8]) -> bool {
        self.deliver_with(pair, packet, &[0; HEADER])
    }

    /// With a header; its number of buffers is filled in.
    pub(super) fn deliver_with(&mut self, pair: usize, packet: &[u8], header: &[u8; HEADER]) -> bool {
        let mut rest: Vec<u8> = header.iter().chain(packet).copied().collect();
        let mut buffers: Vec<(Chain, Vec<u8>)> = Vec::new();
        while !rest.is_empty() {
            let may_merge = buffers.is_empty() || self.driver & feature::MRG_RXBUF != 0;
            let Some(chain) = self.pop(2 * pair).filter(|_| may_merge) else {
                buffers.into_iter().rev().for_each(|(chain, _)| self.queues[2 * pair].back.push(chain));
                return false;
            };
            let fits = chain.segments.len() == 1 && chain.segments[0].2 && chain.segments[0].1 > 12;
            assert!(!self.strict || fits, "{chain:?}");
            if !fits {
                return false;
            }
            let part = rest.drain(..rest.len().min(chain.segments[0].1 as usize)).collect();
            buffers.push((chain, part));
        }
        let count = (buffers.len() as u16).to_le_bytes();
        buffers[0].1[10..12].copy_from_slice(&count);
        for (chain, part) in buffers {
            let written = self.iommu.write(chain.segments[0].0, &part);
            assert!(!self.strict || written, "a buffer outside");
            self.push(2 * pair, &chain, part.len() as u32);
        }
        true
    }

    /// Sends what transmit queue `pair` has, `most` packets at the most: the headers, and the packets.
    pub(super) fn collect(&mut self, pair: usize, most: usize) -> Vec<([u8; HEADER], Vec<u8>)> {
        let mut sent = Vec::new();
        for _ in 0..most {
            let Some(chain) = self.pop(2 * pair + 1) else { break };
            if self.strict {
                sent.push(self.gather(&chain));
            }
            self.push(2 * pair + 1, &chain, 0);
        }
        sent
    }

    /// The header and the packet in a transmit buffer.
    pub(super) fn gather(&self, chain: &Chain) -> ([u8; HEADER], Vec<u8>) {
        let mut bytes = Vec::new();
        for (address, length, writable) in &chain.segments {
            assert!(!writable && *length > 0);
            let mut part = vec![0; *length as usize];
            assert!(self.iommu.read(*address, &mut part));
            bytes.extend(part);
        }
        let packet = bytes.split_off(HEADER);
        (bytes.try_into().unwrap(), packet)
    }

    fn serve_control(&mut self) {
        let number = self.control_index();
        while self.answer.is_some()
            && let Some(chain) = self.pop(number)
        {
            let mut command = Vec::new();
            let mut written = 0;
            for (address, length, writable) in &chain.segments {
                if *writable {
                    written = 1;
                    self.iommu.write(*address, &[self.answer.unwrap_or(1)]);
                } else {
                    let mut part = vec![0; (*length as usize).min(4096)];
                    self.iommu.read(*address, &mut part);
                    command.extend(part);
                }
            }
            self.commands.push(command);
            self.push(number, &chain, written);
        }
    }

    /// Of a queue that was enabled: its size, and its vector.
    pub(super) fn enabled(&self, queue: usize) -> Option<(u16, u16)> {
        self.queues.get(queue).filter(|queue| queue.enabled).map(|queue| (queue.size, queue.vector))
    }

    /// Where a queue's memory is.
    pub(super) fn addresses(&self, queue: usize) -> [u64; 3] {
        self.queues[queue].addresses
    }
}
