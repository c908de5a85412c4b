//! A model of the 82574: the registers that the driver touches, and a device that works its rings behind a [`ModelIommu`].
//!
//! Written from the data sheet and not from the driver: what the driver gets wrong it should not get right.
#![forbid(unsafe_code)]

use super::super::registers::*;
use crate::vfio::dma::DmaSpace;
use crate::vfio::function::{PciFunction, PciId};
use crate::vfio::intel::mdic::MDIC;
use crate::vfio::intel::rss::{RETA, RSSRK};
use crate::vfio::model::{ModelIommu, ModelMsix};
use crate::vfio::registers::{RegisterSpace, Registers};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const DD: u64 = 1;
const EOP: u64 = 2;

/// What the device is in the middle of.
pub(super) struct State {
    words: Vec<u32>,
    phy: [u16; 32],
    /// The NVM's address.
    pub(super) mac: [u8; 6],
    pub(super) bus_master: bool,
    /// Unplugged.
    pub(super) gone: bool,
    /// Transmits nothing any more, until it is reset.
    pub(super) hung: bool,
    /// Never comes out of a reset.
    pub(super) stuck_in_reset: bool,
    /// Requests as a bus master never end.
    pub(super) busy_master: bool,
    /// Looks until a reset is over.
    resetting: u32,
    /// Resets that came while requests were still allowed.
    rude_resets: u32,
    resets: u32,
    /// Times that negotiation was begun.
    negotiations: u32,
    /// Descriptors and registers may be anything: what the model cannot make sense of it stands still at.
    pub(super) hostile: bool,
    /// The cable.
    pub(super) cable: bool,
    /// Answers to reads whatever is so.
    pub(super) lies: HashMap<usize, u32>,
    /// What was sent.
    pub(super) sent: Vec<Vec<u8>>,
    /// The packet under way of each queue: its bytes and its first descriptor's options.
    partial: [(Vec<u8>, Option<u64>); 2],
    /// The last context, whichever queue it came by.
    context: [u64; 2],
}

/// The device: its registers, and its PCI function.
pub(super) struct Model {
    state: Mutex<State>,
    iommu: ModelIommu,
    space: Arc<DmaSpace>,
    msix: ModelMsix,
}

/// What can be held by a driver.
struct Function(Arc<Model>);
struct Bar(Arc<Model>);

fn at(register: usize) -> usize {
    register / 4
}

impl State {
    fn get(&self, register: usize) -> u32 {
        self.words[at(register)]
    }

    fn set(&mut self, register: usize, value: u32) {
        self.words[at(register)] = value;
    }

    fn power_on(&mut self) {
        self.words.fill(0);
        self.set(CTRL, 1 | 1 << 6 | 2 << 8);
        self.set(TIPG, TIPG_RECOMMENDED);
        for queue in 0..2 {
            self.set(tarc(queue), 3 | 1 << 10);
        }
        // The default of what is checked, and stale numbers, as the data sheet warns.
        self.set(RXCSUM, 3 << 8);
        self.set(0x4010, 77);
        let [a, b, c, d, e, f] = self.mac;
        self.set(RAL0, u32::from_le_bytes([a, b, c, d]));
        self.set(RAH0, u32::from_le_bytes([e, f, 0, 0x80]));
        self.hung = false;
        self.partial = Default::default();
    }

    fn link(&self) -> bool {
        let phy_up = self.cable && self.phy[0] & 1 << 11 == 0;
        phy_up && self.get(CTRL) & 1 << 6 != 0
    }

    fn mdic(&mut self, value: u32) {
        let (register, phy) = ((value >> 16 & 31) as usize, value >> 21 & 31);
        let mut answer = value | 1 << 28;
        match (phy, value >> 26 & 3) {
            (1, 1) => {
                self.negotiations += u32::from(register == 0 && value & 1 << 9 != 0);
                self.phy[register] = value as u16 & !(1 << 9 | 1 << 15);
            }
            (1, 2) => {
                self.phy[1] = self.phy[1] & !4 | u16::from(self.cable && self.phy[0] & 1 << 11 == 0) << 2;
                answer = answer & !0xFFFF | u32::from(self.phy[register]);
            }
            _ => answer |= 1 << 30,
        }
        self.set(MDIC, answer);
    }

    fn count(&mut self, register: usize) {
        self.set(register, self.get(register).saturating_add(1));
    }
}

impl Model {
    /// A device that was just plugged in, and the function that a driver opens.
    pub(super) fn new() -> (Arc<Self>, Arc<dyn PciFunction>) {
        let (iommu, space) = ModelIommu::new();
        let mut state = State {
            words: vec![0; LENGTH / 4],
            phy: [0; 32],
            mac: [2, 0, 0, 0, 0, 7],
            bus_master: false,
            gone: false,
            hung: false,
            stuck_in_reset: false,
            busy_master: false,
            resetting: 0,
            rude_resets: 0,
            resets: 0,
            negotiations: 0,
            hostile: false,
            cable: true,
            lies: HashMap::new(),
            sent: Vec::new(),
            partial: Default::default(),
            context: [0; 2],
        };
        state.phy[0] = 1 << 12 | 1 << 8 | 1 << 6;
        state.phy[4] = 0xDE1;
        state.power_on();
        let model = Arc::new(Self { state: Mutex::new(state), iommu, space, msix: ModelMsix::default() });
        let function: Arc<dyn PciFunction> = Arc::new(Function(Arc::clone(&model)));
        (model, function)
    }

    /// All that it is.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A test that fails in here still closes its port.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets that came while requests were still allowed, and all.
    pub(super) fn resets(&self) -> (u32, u32) {
        let state = self.state();
        (state.rude_resets, state.resets)
    }

    pub(super) fn negotiations(&self) -> u32 {
        self.state().negotiations
    }

    /// The value of a register, without the side effects of reading it.
    pub(super) fn peek(&self, register: usize) -> u32 {
        self.state().get(register)
    }

    /// Sets a register as if the device had.
    pub(super) fn poke(&self, register: usize, value: u32) {
        self.state().set(register, value);
    }

    /// Plugs the cable in, or takes it out.
    pub(super) fn plug(&self, cable: bool) {
        self.state().cable = cable;
        self.cause(icr::LSC);
    }

    /// A cause that is no queue's (7.4.3, 10.2.4): all of them are OTHER too, and that has a message, once until it is cleared.
    pub(super) fn cause(&self, cause: u32) {
        let mut state = self.state();
        let before = state.get(ICR);
        let after = before | cause | icr::OTHER;
        state.set(ICR, after);
        let new = (after & !before) & state.get(IMS) & icr::OTHER != 0;
        let allocated = state.get(IVAR) >> 16 & 15;
        if new && allocated & 8 != 0 && state.bus_master {
            self.msix.send((allocated & 7) as usize);
        }
    }

    pub(super) fn poke_phy(&self, register: usize, value: u16) {
        self.state().phy[register] = value;
    }

    pub(super) fn iommu(&self) -> &ModelIommu {
        &self.iommu
    }

    pub(super) fn space(&self) -> &Arc<DmaSpace> {
        &self.space
    }

    /// What was sent since the last time.
    pub(super) fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.state().sent)
    }

    /// Writes a descriptor back as it pleases.
    pub(super) fn write_back(&self, receive: bool, queue: usize, index: usize, words: [u64; 2]) {
        let state = self.state();
        let (low, high) = if receive { (rdbal(queue), rdbah(queue)) } else { (tdbal(queue), tdbah(queue)) };
        let base = u64::from(state.get(low)) | u64::from(state.get(high)) << 32;
        self.put(base + 16 * index as u64, words);
    }

    fn put(&self, iova: u64, words: [u64; 2]) -> bool {
        self.iommu.write(iova, &words[0].to_le_bytes()) && self.iommu.write(iova + 8, &words[1].to_le_bytes())
    }

    fn fetch(&self, iova: u64) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        self.iommu
            .read(iova, &mut bytes)
            .then(|| [0, 8].map(|from| u64::from_le_bytes(bytes[from..from + 8].try_into().unwrap())))
    }

    /// Lets a packet come in by the cable; false where the device drops it.
    pub(super) fn receive(&self, packet: &[u8]) -> bool {
        let mut state = self.state();
        let control = state.get(RCTL);
        if state.gone || !state.link() || control & 1 << 1 == 0 || !accepts(&state, packet) {
            return false;
        }
        assert!(state.get(RFCTL) & 1 << 15 != 0, "the driver reads extended descriptors");
        assert!(control & 1 << 26 != 0, "the driver does not expect the CRC");
        if packet.len() + 4 > 1522 && control & 1 << 5 == 0 {
            state.count(0x40AC);
            return false;
        }
        let (hash, kind) = if state.get(MRQC) & 3 == 1 { rss(&state, packet) } else { (0, 0) };
        // Bit 7 of the entry that the hash's low seven bits choose.
        let entry = (hash & 127) as usize;
        let reta = state.get(RETA + (entry & !3)) >> (8 * (entry & 3));
        let queue = usize::from(kind != 0 && reta & 0x80 != 0);

        let flexible = (control >> 27 & 15) as usize * 1024;
        let size = if flexible > 0 { flexible } else { 2048 >> (control >> 16 & 3) };
        let descriptors = state.get(rdlen(queue)) as usize / 16;
        let (mut head, tail) = (state.get(rdh(queue)) as usize, state.get(rdt(queue)) as usize);
        let free = if descriptors == 0 { 0 } else { (tail + descriptors - head) % descriptors };
        if !state.bus_master || free < packet.len().div_ceil(size) {
            state.count(0x4010);
            return false;
        }
        let base = u64::from(state.get(rdbal(queue))) | u64::from(state.get(rdbah(queue))) << 32;
        let mut parts = packet.chunks(size).peekable();
        while let Some(part) = parts.next() {
            let place = base + 16 * head as u64;
            let Some([address, _]) = self.fetch(place) else { return false };
            if !self.iommu.write(address, part) {
                assert!(state.hostile, "a buffer that is not mapped");
                return false;
            }
            let mut status = DD | (part.len() as u64) << 32;
            if parts.peek().is_none() {
                status |= EOP | checked(&state, packet);
            }
            let first = u64::from(kind) | (queue as u64) << 8 | u64::from(hash) << 32;
            self.put(place, [first, status]);
            head = (head + 1) % descriptors;
        }
        state.set(rdh(queue), head as u32);
        state.count(0x4074);
        true
    }

    /// Works the transmit ring as far as it can.
    fn transmit(&self, state: &mut State, queue: usize) {
        let descriptors = state.get(tdlen(queue)) / 16;
        loop {
            let (head, tail) = (state.get(tdh(queue)), state.get(tdt(queue)));
            let may = state.get(TCTL) & 2 != 0 && state.get(tarc(queue)) & 1 << 10 != 0 && state.bus_master;
            let blocked = state.hung || state.gone || state.resetting > 0 || !state.link();
            if !may || blocked || head == tail || tail >= descriptors {
                return;
            }
            let base = u64::from(state.get(tdbal(queue))) | u64::from(state.get(tdbah(queue))) << 32;
            let place = base + 16 * u64::from(head);
            let Some([address, word]) = self.fetch(place) else { return };
            if !self.process(state, queue, address, word) {
                // The request was refused: it stands.
                state.hung = true;
                return;
            }
            if word & 1 << 27 != 0 {
                self.put(place, [address, word | 1 << 32]);
            }
            state.set(tdh(queue), (head + 1) % descriptors);
        }
    }

    fn process(&self, state: &mut State, queue: usize, address: u64, word: u64) -> bool {
        let sane = word & 1 << 29 != 0 && (word & 1 << 25 != 0 || word >> 20 & 15 == 0);
        if state.hostile && !sane {
            return false;
        }
        assert!(word & 1 << 29 != 0, "no legacy descriptor is expected");
        if word >> 20 & 15 == 0 {
            state.context = [address, word];
            return true;
        }
        let mut bytes = vec![0; (word & 0xF_FFFF) as usize];
        if !self.iommu.read(address, &mut bytes) {
            return false;
        }
        let (packet, options) = &mut state.partial[queue];
        packet.extend(bytes);
        let options = *options.get_or_insert(word >> 40 & 255);
        if word & 1 << 24 == 0 {
            return true;
        }
        assert!(word & 1 << 25 != 0, "the frame check sequence is the device's");
        let (mut packet, _) = std::mem::take(&mut state.partial[queue]);
        if !state.hostile {
            fill_checksums(&mut packet, options, state.context);
        }
        if state.get(TCTL) & 1 << 3 != 0 {
            packet.resize(packet.len().max(60), 0);
        }
        state.sent.push(packet);
        state.count(0x4080);
        true
    }
}

/// Inserts what a context says where.
fn fill_checksums(packet: &mut [u8], options: u64, [fields, _]: [u64; 2]) {
    let byte = |shift: u32| (fields >> shift & 255) as usize;
    if options & 1 != 0 {
        let end = (fields >> 16 & 0xFFFF) as usize;
        let sum = !ones_sum(&packet[byte(0)..=end], 0);
        packet[byte(8)..byte(8) + 2].copy_from_slice(&sum.to_be_bytes());
    }
    if options & 2 != 0 {
        assert_eq!(fields >> 48, 0, "to the packet's end");
        let sum = !ones_sum(&packet[byte(32)..], 0);
        packet[byte(40)..byte(40) + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The ones' complement sum.
pub(super) fn ones_sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// Filters: 10.2.5, RCTL, RAL, VFTA.
fn accepts(state: &State, packet: &[u8]) -> bool {
    let control = state.get(RCTL);
    if control & 1 << 18 != 0 && packet[12..14] == [0x81, 0] {
        let vlan = usize::from(u16::from_be_bytes([packet[14], packet[15]]) & 0xFFF);
        if state.get(VFTA + 4 * (vlan / 32)) >> (vlan % 32) & 1 == 0 {
            return false;
        }
    }
    match &packet[..6] {
        [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF] => control & 1 << 15 != 0,
        [first, ..] if first & 1 != 0 => control & 1 << 4 != 0,
        address => {
            control & 1 << 3 != 0
                || (0..16).any(|entry| {
                    let (low, high) =
                        (state.get(RAL0 + 8 * entry).to_le_bytes(), state.get(RAH0 + 8 * entry));
                    let [e, f, ..] = high.to_le_bytes();
                    high >> 31 == 1 && address == [low[0], low[1], low[2], low[3], e, f]
                })
        }
    }
}

/// The status and error bits for an IPv4 packet without options.
fn checked(state: &State, packet: &[u8]) -> u64 {
    if packet[12..14] != [8, 0] {
        return 0;
    }
    let mut status = 0;
    if state.get(RXCSUM) & 1 << 8 != 0 {
        status |= 1 << 6 | u64::from(ones_sum(&packet[14..34], 0) != 0xFFFF) << 30;
    }
    let protocol = packet[23];
    if state.get(RXCSUM) & 1 << 9 != 0 && matches!(protocol, 6 | 17) {
        let end = 14 + usize::from(u16::from_be_bytes([packet[16], packet[17]]));
        let pseudo = u32::from(protocol) + (end - 34) as u32 + u32::from(ones_sum(&packet[26..34], 0));
        status |= 1 << 5 | u64::from(ones_sum(&packet[34..end], pseudo) != 0xFFFF) << 29;
    }
    status
}

/// The hash and its type (1: TCP over IPv4, 2: IPv4, 0: none).
fn rss(state: &State, packet: &[u8]) -> (u32, u32) {
    if packet[12..14] != [8, 0] {
        return (0, 0);
    }
    let types = state.get(MRQC) >> 16;
    let tcp = packet[23] == 6 && types & 1 != 0;
    if !tcp && types & 2 == 0 {
        return (0, 0);
    }
    let key: Vec<u8> = (0..10).flat_map(|word| state.get(RSSRK + 4 * word).to_le_bytes()).collect();
    (toeplitz(&key, &packet[26..if tcp { 38 } else { 34 }]), if tcp { 1 } else { 2 })
}

pub(super) fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], n: usize| bytes[n / 8] >> (7 - n % 8) & 1 == 1;
    let window = |n: usize| (0..32).fold(0, |value: u32, i| value << 1 | u32::from(bit(key, n + i)));
    (0..input.len() * 8).filter(|n| bit(input, *n)).fold(0, |hash, n| hash ^ window(n))
}

impl RegisterSpace for Bar {
    fn length(&self) -> usize {
        LENGTH
    }

    fn read32(&self, offset: usize) -> u32 {
        let mut state = self.0.state();
        if state.gone || offset >= LENGTH {
            return u32::MAX;
        }
        if let Some(lie) = state.lies.get(&offset) {
            return *lie;
        }
        let value = state.get(offset);
        match offset {
            CTRL => {
                let resetting = state.stuck_in_reset && state.resetting > 0;
                if !resetting {
                    state.resetting = state.resetting.saturating_sub(1);
                }
                value | u32::from(state.resetting > 0) << 26
            }
            STATUS => {
                let master = state.busy_master || state.get(CTRL) & 1 << 2 == 0;
                1 | u32::from(state.link()) << 1 | 2 << 6 | u32::from(master) << 19
            }
            EECD => value & !(1 << 9) | u32::from(state.resetting == 0) << 9,
            // With MSI-X it is cleared by writing; while all is masked, by reading too.
            ICR if state.get(IMS) != 0 => value,
            ICR | 0x4000..0x4100 => {
                state.set(offset, 0);
                if matches!(offset, 0x408C | 0x4094) {
                    state.set(offset - 4, 0);
                }
                value
            }
            _ => value,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let model = &*self.0;
        let mut state = model.state();
        if state.gone || offset >= LENGTH {
            return;
        }
        match offset {
            CTRL if value & 1 << 26 != 0 => {
                state.rude_resets += u32::from(state.get(CTRL) & 1 << 2 == 0);
                state.resets += 1;
                state.power_on();
                state.resetting = 3;
            }
            MDIC => state.mdic(value),
            ICR => {
                let left = state.get(ICR) & !value;
                state.set(ICR, left);
            }
            IMS | IMC => {
                let before = state.get(IMS);
                state.set(IMS, if offset == IMS { before | value } else { before & !value });
                let again = value & state.get(ICR) & icr::OTHER != 0 && before & icr::OTHER == 0;
                if offset == IMS && again && state.get(IVAR) >> 16 & 8 != 0 {
                    model.msix.send((state.get(IVAR) >> 16 & 7) as usize);
                }
            }
            STATUS | 0x4000..0x4100 => {}
            _ => state.set(offset, value),
        }
        for queue in 0..2 {
            if matches!(offset, TCTL | CTRL) || offset == tdt(queue) {
                model.transmit(&mut state, queue);
            }
        }
    }

    fn read8(&self, _: usize) -> u8 {
        panic!("the data sheet has accesses of 32 bits alone")
    }

    fn read16(&self, _: usize) -> u16 {
        panic!("the data sheet has accesses of 32 bits alone")
    }

    fn write8(&self, _: usize, _: u8) {
        panic!("the data sheet has accesses of 32 bits alone")
    }

    fn write16(&self, _: usize, _: u16) {
        panic!("the data sheet has accesses of 32 bits alone")
    }
}

impl PciFunction for Function {
    fn id(&self) -> PciId {
        PciId { vendor: 0x8086, device: 0x10D3 }
    }

    fn read_config(&self, offset: u16, bytes: u8) -> u32 {
        // A PCI Express capability with ASPM L1, behind one that is not.
        match (offset, bytes) {
            (0x34, 1) => 0xC8,
            (0xC8, 1) => 0x05,
            (0xC9, 1) => 0xE0,
            (0xE0, 1) => 0x10,
            (0xF0, 2) => 2,
            _ => 0,
        }
    }

    fn write_config(&self, _: u16, _: u8, _: u32) {}

    fn bar(&self, index: u8) -> io::Result<Registers> {
        if index == 0 { Ok(Arc::new(Bar(Arc::clone(&self.0)))) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn reset(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn set_bus_master(&self, on: bool) {
        let mut state = self.0.state();
        state.bus_master = on;
        if on {
            (0..2).for_each(|queue| self.0.transmit(&mut state, queue));
        }
    }

    fn dma(&self) -> &Arc<DmaSpace> {
        &self.0.space
    }

    fn msix_vectors(&self) -> u16 {
        5
    }

    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        self.0.msix.enable(count)
    }

    fn is_going(&self) -> bool {
        self.0.state().gone
    }
}
