//! The driver on a model of the 82576, from open to close.
#![forbid(unsafe_code)]

use super::model::{MAC, Model};
use super::registers::*;
use super::*;
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Checksum, Packet, Pool, PoolConfig};
use crate::port::{LinkState, PortId, RxQueue, TxQueue};
use crate::vfio::dma::PoolMapping;
use crate::vfio::intel::model::{ModelFunction, Sent};
use crate::vfio::model::ModelIommu;
use crate::vfio::nic::Nic;
use proptest::prelude::*;

struct Bench {
    iommu: ModelIommu,
    model: Arc<Model>,
    function: Arc<dyn PciFunction>,
    pool: Pool,
    frames: Arc<PoolMapping>,
}

/// An open NIC.
struct Port {
    nic: IgbNic,
    rx: Vec<Box<dyn RxQueue>>,
    tx: Vec<Box<dyn TxQueue>>,
}

#[derive(Clone, Default)]
struct Wish {
    queues: u16,
    ring: u16,
    mtu: usize,
    promiscuous: bool,
    checksum: bool,
    vlans: Vec<u16>,
}

impl Wish {
    fn new(queues: u16) -> Self {
        Self { queues, ring: 128, mtu: 1500, promiscuous: true, ..Self::default() }
    }
}

impl Bench {
    fn new(frames: usize, frame_size: usize) -> Self {
        Self::with_msix(frames, frame_size, true)
    }

    fn with_msix(frames: usize, frame_size: usize, msix: bool) -> Self {
        let (iommu, dma) = ModelIommu::new();
        let pool = Pool::new(&PoolConfig { frames, frame_size, ..PoolConfig::default() }).unwrap();
        let model = Model::new(&iommu);
        let msix = msix.then(|| model.msix.clone());
        let function = ModelFunction::with_msix(0x10C9, model.clone(), dma.clone(), msix);
        model.set_master(function.master());
        let frames = dma.map_pool(&pool).unwrap();
        Self { iommu, model, function, pool, frames }
    }

    fn open(&self, wish: &Wish) -> Result<Port, NicError> {
        let config = NicConfig {
            name: "vfio:test",
            rx_queues: wish.queues,
            tx_queues: wish.queues,
            rx_ring: wish.ring,
            tx_ring: wish.ring,
            mtu: wish.mtu,
            promiscuous: wish.promiscuous,
            checksum: wish.checksum,
            vlans: &wish.vlans,
            frames: &self.frames,
            id: PortId(1),
            options: &[],
        };
        self.function.set_bus_master(true);
        let (mut nic, rx, tx) = open_igb(&self.function, &config)?;
        nic.impatient();
        Ok(Port { nic, rx, tx })
    }

    fn refuses(&self, wish: &Wish) -> String {
        self.open(wish).err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// Every frame is back, every mapping but the pool's gone, and the device never went astray.
    fn check_closed(self) {
        assert_eq!((self.pool.audit().held, self.pool.audit().duplicated), (0, 0));
        assert_eq!(self.iommu.faults(), 0);
        assert_eq!(self.iommu.mappings(), 1);
        assert_eq!(self.model.breaches(), (vec![], [0, 0]), "no semaphore was passed over, or is kept");
    }
}

impl Port {
    fn close(self) -> Vec<Arc<QueueCounters>> {
        let counters = self.rx.iter().map(|rx| rx.counters()).chain(self.tx.iter().map(|tx| tx.counters()));
        counters.cloned().collect()
    }

    /// Forwards what each receive queue has by the transmit queue of the same number.
    fn forward(&mut self) -> usize {
        let mut count = 0;
        for (rx, tx) in self.rx.iter_mut().zip(&mut self.tx) {
            let mut batch = Batch::new();
            rx.receive(&mut batch);
            count += batch.len();
            tx.transmit(&mut batch);
            assert!(batch.is_empty());
            tx.needs_doorbell();
        }
        count
    }
}

fn ethernet(to: [u8; 6], rest: &[u8]) -> Vec<u8> {
    [&to[..], &[2, 0, 0, 0, 0, 9], rest].concat()
}

/// A TCP or UDP packet of a flow, its number in the payload.
fn of_flow(udp: bool, flow: u8, number: u32) -> Vec<u8> {
    use etherparse::PacketBuilder;
    let ip =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], MAC).ipv4([10, 0, 0, flow], [10, 0, 1, flow / 2], 64);
    let payload = number.to_le_bytes();
    let mut bytes = Vec::new();
    if udp {
        ip.udp(1000 + u16::from(flow), 53).write(&mut bytes, &payload).unwrap();
    } else {
        ip.tcp(1000 + u16::from(flow), 80, number, 99).write(&mut bytes, &payload).unwrap();
    }
    bytes
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_le_bytes(packet[packet.len() - 4..].try_into().unwrap())
}

#[test]
fn packets_go_through_it_and_nothing_is_left() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(1)).unwrap();
    assert_eq!(port.nic.mac(), crate::port::MacAddress(MAC));
    assert_eq!(port.nic.link(), LinkState::Up { speed_mbps: Some(1000) });
    assert_eq!(port.nic.mode(), "82576, 1 queue, never run on silicon");
    assert_eq!(bench.model.peek(RLPML), 1526);
    for round in 0..2000_u32 {
        let length = 60 + round as usize * 7 % 1455;
        let bytes = ethernet(MAC, &vec![round as u8; length - 12]);
        assert_eq!(bench.model.receive(&bytes, 0), Some(0));
        if round % 32 == 31 {
            assert_eq!(port.forward(), 32);
            let sent = bench.model.send(99);
            assert!(sent.iter().all(|(_, sent)| sent.segments == 1));
            assert_eq!(sent.last().map(|(_, sent)| &sent.bytes), Some(&bytes));
        }
    }
    port.forward();
    bench.model.send(99);
    port.forward();
    port.forward();
    port.nic.refresh();
    let extra: std::collections::HashMap<_, _> = port.nic.extra_counters().into_iter().collect();
    assert_eq!((extra["gprc"], extra["gptc"], extra["mpc"]), (2000, 2000, 0));
    let counters = port.close();
    assert_eq!((counters[0].packets.get(), counters[1].packets.get()), (2000, 2000));
    assert!(counters.iter().all(|counters| counters.all_drops().all(|(_, count)| count == 0)));
    bench.check_closed();
}

#[test]
fn a_packet_as_long_as_may_be_fits_and_a_longer_one_does_not_come() {
    for (frame_size, mtu, segments) in
        [(2048, 1500, 1), (2048, 900, 1), (2048, 9000, 9), (4096, 1500, 1), (4096, 3400, 1), (4096, 9000, 3)]
    {
        let bench = Bench::new(1024, frame_size);
        let mut port = bench.open(&Wish { mtu, ..Wish::new(1) }).unwrap();
        let longest = mtu + 14 + 8;
        // Two tags, which the MTU does not count.
        let mut bytes = ethernet(MAC, &[0x88, 0xA8, 0, 1, 0x81, 0, 0, 2, 8, 0]);
        bytes.resize(longest, 7);
        assert_eq!(bench.model.receive(&bytes, 0), Some(0));
        assert_eq!(bench.model.receive(&[&bytes[..], &[0]].concat(), 0), None);
        let mut batch = Batch::new();
        port.rx[0].receive(&mut batch);
        let shape = batch.iter().next().map(|packet| (packet.segment_count(), packet.total_len()));
        assert_eq!(shape, Some((segments, longest)), "frames of {frame_size}, MTU {mtu}");
        port.tx[0].transmit(&mut batch);
        let sent = bench.model.send(9);
        assert_eq!((sent.len(), &sent[0].1.bytes), (1, &bytes));
        port.close();
        bench.check_closed();
    }
}

#[test]
fn queues_share_the_flows_and_no_flow_changes_its_queue() {
    let bench = Bench::new(8192, 2048);
    let mut port = bench.open(&Wish::new(4)).unwrap();
    assert_eq!(port.nic.mode(), "82576, 4 queues, RSS, never run on silicon");
    let mut queue_of = std::collections::HashMap::new();
    let mut last = std::collections::HashMap::new();
    for number in 1..=20_u32 {
        for flow in 0..64 {
            let bytes = of_flow(flow % 2 == 0, flow, number);
            let queue = bench.model.receive(&bytes, 0).unwrap();
            assert_eq!(*queue_of.entry(flow).or_insert(queue), queue);
            // The way back comes to the same queue.
            let mut back = bytes.clone();
            back[26..30].copy_from_slice(&bytes[30..34]);
            back[30..34].copy_from_slice(&bytes[26..30]);
            back[34..36].copy_from_slice(&bytes[36..38]);
            back[36..38].copy_from_slice(&bytes[34..36]);
            assert_eq!(bench.model.receive(&back, 0), Some(queue));
        }
        port.forward();
        port.forward();
        for (queue, sent) in bench.model.send(999) {
            let key = (sent.bytes[26..38].to_vec(), queue);
            let before = last.insert(key, number_of(&sent.bytes));
            assert!(before.is_none_or(|before| before < number_of(&sent.bytes)), "a flow is in order");
        }
    }
    let shares: Vec<u64> = port.rx.iter().map(|rx| rx.counters().packets.get()).collect();
    assert_eq!(shares.iter().sum::<u64>(), 20 * 64 * 2);
    assert!(shares.iter().all(|share| *share >= 200), "{shares:?}");
    port.close();
    bench.check_closed();
}

#[test]
fn a_full_queue_drops_by_itself_and_a_full_port_misses() {
    for (queues, reason) in [(2, DropReason::RxRingFull), (1, DropReason::RxMissed)] {
        let bench = Bench::new(1024, 2048);
        let mut port = bench.open(&Wish::new(queues)).unwrap();
        let flow = (0..)
            .find(|flow| bench.model.receive(&of_flow(false, *flow, 0), 0) == Some(usize::from(queues) - 1));
        let lost = (0..200).filter(|_| bench.model.receive(&of_flow(false, flow.unwrap(), 0), 0).is_none());
        let lost = lost.count() as u64;
        assert!(lost >= 70);
        (0..2).for_each(|_| port.nic.refresh());
        let queue = usize::from(queues) - 1;
        assert_eq!(port.rx[queue].counters().drops(reason).get(), lost);
        let unread = port.rx[queue].counters().held.get();
        let counters = port.close();
        assert_eq!(counters[queue].drops(DropReason::RxUnread).get(), unread);
        bench.check_closed();
    }
}

#[test]
fn filters_let_through_what_they_should() {
    let bench = Bench::new(1024, 2048);
    let wish = Wish { promiscuous: false, vlans: vec![7, 4094], ..Wish::new(1) };
    let port = bench.open(&wish).unwrap();
    let comes = |to, rest: &[u8]| bench.model.receive(&ethernet(to, &[rest, &[0; 60]].concat()), 0).is_some();
    let ip = [8, 0];
    assert!(comes(MAC, &ip) && comes([0xFF; 6], &ip) && comes([1, 0, 0x5E, 0, 0, 1], &ip));
    assert!(!comes([2, 0, 0, 0, 0, 1], &ip));
    let tagged = |vlan: u16| [0x81, 0, (vlan >> 8) as u8, vlan as u8, 8, 0];
    assert!(comes(MAC, &tagged(7)) && comes(MAC, &tagged(4094)));
    assert!(!comes(MAC, &tagged(6)) && !comes(MAC, &tagged(39)));
    port.close();
    let port = bench.open(&Wish::new(1)).unwrap();
    assert!(bench.model.receive(&ethernet([2, 0, 0, 0, 0, 1], &[0x81, 0, 0, 6, 8, 0]), 0).is_some());
    port.close();
    bench.check_closed();
}

/// What the device does where it was told to fill in checksums: sums from where the context says.
fn filled(sent: &Sent) -> Vec<u8> {
    let mut bytes = sent.bytes.clone();
    let [lengths, kind] = sent.context.unwrap();
    let (mac_len, ip_len) = ((lengths >> 9 & 127) as usize, (lengths & 511) as usize);
    let sum = |part: &[u8]| {
        let pairs =
            part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut sum: u32 = pairs.sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    };
    if sent.options & 1 != 0 {
        assert_ne!(kind & 1 << 10, 0, "IPv4");
        let value = sum(&bytes[mac_len..mac_len + ip_len]);
        bytes[mac_len + 10..mac_len + 12].copy_from_slice(&value.to_be_bytes());
    }
    if sent.options & 2 != 0 {
        let start = mac_len + ip_len;
        let field = start + if kind & 1 << 11 != 0 { 16 } else { 6 };
        let value = sum(&bytes[start..]);
        bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

#[test]
fn checksums_are_filled_in_where_they_were_asked_for() {
    use etherparse::PacketBuilder;
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish { checksum: true, ..Wish::new(1) }).unwrap();
    let payload = [7; 21];
    let write = |builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>| {
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &payload).unwrap();
        bytes
    };
    let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
    let v6 = ([0x20; 16], [0x30; 16]);
    let mut right = vec![of_flow(false, 1, 5), of_flow(true, 1, 5), of_flow(true, 9, 6)];
    right.push(write(ethernet().ipv6(v6.0, v6.1, 9).udp(1, 2)));
    right.push(write(ethernet().single_vlan(3.try_into().unwrap()).ipv4([1; 4], [2; 4], 9).udp(1, 2)));
    right.push(write(
        ethernet().double_vlan(3.try_into().unwrap(), 4.try_into().unwrap()).ipv6(v6.0, v6.1, 9).udp(1, 2),
    ));
    // An ICMP packet has no checksum of these but IPv4's, and of a fragment that is all that is to be filled in. ARP has none; where TCP's or UDP's is cut off, it cannot
    // be filled in.
    let mut icmp = of_flow(false, 1, 5);
    icmp[23] = 1;
    let mut fragment = of_flow(false, 1, 5);
    fragment[20] = 0x20;
    for mut bytes in [icmp, fragment] {
        bytes[24..26].fill(0);
        let sum: u32 = bytes[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        bytes[24..26].copy_from_slice(&(!((sum & 0xFFFF) as u16 + (sum >> 16) as u16)).to_be_bytes());
        right.push(bytes);
    }
    let arp = super::tests::ethernet([0xFF; 6], &[8, 6, 0, 1, 8, 0, 6, 4]);
    let short = of_flow(false, 1, 5)[..40].to_vec();
    let mut batch = Batch::new();
    for bytes in right.iter().chain([&short, &arp]) {
        let mut packet = bench.pool.allocate(bytes.len()).unwrap();
        packet.data_mut().copy_from_slice(bytes);
        packet.fill_checksum(true);
        batch.push(packet).unwrap();
    }
    // Once more without being asked for.
    let mut packet = bench.pool.allocate(right[0].len()).unwrap();
    packet.data_mut().copy_from_slice(&right[0]);
    batch.push(packet).unwrap();
    // The sums that are there must not matter.
    for packet in batch.iter_mut().take(4) {
        let data = packet.data_mut();
        let at = if data[12] == 8 { 24 } else { 60 };
        data[at] ^= 0x55;
    }
    port.tx[0].transmit(&mut batch);
    assert!(batch.is_empty());
    let sent = bench.model.send(99);
    let options: Vec<u64> = sent.iter().map(|(_, sent)| sent.options).collect();
    assert_eq!(options, [3, 3, 3, 2, 3, 2, 1, 1, 0, 0]);
    assert_eq!(port.tx[0].counters().drops(DropReason::TxChecksum).get(), 1);
    for (wanted, (_, sent)) in right.iter().zip(&sent) {
        assert_eq!(&filled(sent), wanted);
    }
    assert_eq!((&sent[8].1.bytes, &sent[9].1.bytes), (&arp, &right[0]));
    // And what it thinks of those it receives.
    assert!(bench.model.receive(&right[0], 0b11 << 5).is_some());
    port.rx[0].receive(&mut batch);
    assert_eq!(batch.iter().map(Packet::checksum).collect::<Vec<_>>(), [Checksum::Good]);
    drop(batch);
    port.close();
    bench.check_closed();
}

#[test]
fn a_hung_device_is_reset_and_goes_on() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(2)).unwrap();
    port.nic.link();
    let mut offered = 0;
    let mut turn = |port: &mut Port| {
        offered += u64::from(bench.model.receive(&of_flow(false, 3, 0), 0).is_some());
        port.forward();
    };
    turn(&mut port);
    bench.model.hang(true);
    (0..3).for_each(|_| turn(&mut port));
    port.nic.refresh();
    assert_eq!(port.nic.link(), LinkState::Up { speed_mbps: Some(1000) }, "one look is not enough");
    port.nic.refresh();
    assert_eq!((port.nic.link(), bench.model.resets()), (LinkState::Down, 2));
    port.nic.refresh();
    assert_eq!(bench.model.resets(), 2, "not before the workers have been there");
    turn(&mut port);
    bench.model.hang(false);
    // A step each, and none of them waits.
    port.nic.refresh();
    assert_eq!((port.nic.link(), bench.model.resets()), (LinkState::Down, 3));
    port.nic.refresh();
    assert_eq!((port.nic.link(), bench.model.resets()), (LinkState::Up { speed_mbps: Some(1000) }, 3));
    turn(&mut port);
    for _ in 0..3 {
        turn(&mut port);
        bench.model.send(99);
    }
    port.forward();
    port.forward();
    assert!(port.nic.extra_counters().contains(&("hang_recoveries".into(), 1)));
    let counters = port.close();
    let received: u64 = counters[..2].iter().map(|counters| counters.packets.get()).sum();
    let sent: u64 = counters[2..].iter().map(|counters| counters.packets.get()).sum();
    let dropped =
        counters.iter().flat_map(|counters| counters.all_drops()).map(|(_, count)| count).sum::<u64>();
    assert_eq!((received, sent), (offered, offered - dropped));
    assert!((4..6).contains(&dropped) && sent >= 3, "{dropped} dropped, {sent} sent");
    bench.check_closed();
}

#[test]
fn a_device_that_does_not_come_back_is_gone() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(1)).unwrap();
    bench.model.hang(true);
    assert!(bench.model.receive(&of_flow(false, 3, 0), 0).is_some());
    port.forward();
    (0..2).for_each(|_| port.nic.refresh());
    port.forward();
    bench.model.miss(3);
    bench.model.stick();
    (0..5).for_each(|_| port.nic.refresh());
    assert_eq!(port.nic.link(), LinkState::Down, "it is waited for");
    port.nic.expire();
    port.nic.refresh();
    assert!(matches!(port.nic.link(), LinkState::Gone(reason) if reason.contains("out of its reset")));
    let counters = port.close();
    assert_eq!(counters[0].drops(DropReason::RxMissed).get(), 3, "what was counted before the reset counts");
    bench.check_closed();
}

#[test]
fn an_unplugged_device_is_an_event() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(2)).unwrap();
    port.nic.link();
    assert!(bench.model.receive(&of_flow(false, 3, 0), 0).is_some());
    bench.model.unplug();
    port.nic.refresh();
    assert!(matches!(port.nic.link(), LinkState::Gone(reason) if reason.contains("all ones")));
    assert_eq!(port.forward(), 1, "what it had received is there");
    let counters = port.close();
    assert!(counters.iter().all(|counters| counters.drops(DropReason::RxMissed).get() == 0));
    let down: u64 = counters.iter().map(|counters| counters.drops(DropReason::TxPortDown).get()).sum();
    assert_eq!(down, 1);
    assert!(bench.refuses(&Wish::new(1)).contains("all ones"));
    bench.check_closed();
}

#[test]
fn a_link_that_goes_down_is_told_of_and_one_that_comes_is_waited_for() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(1)).unwrap();
    let offer = |port: &mut Port| {
        let mut batch = Batch::new();
        batch.push(bench.pool.allocate(60).unwrap()).unwrap();
        port.tx[0].transmit(&mut batch);
        port.tx[0].counters().drops(DropReason::TxPortDown).get()
    };
    bench.model.set_link(false);
    assert_eq!((port.nic.link(), offer(&mut port)), (LinkState::Down, 0), "it has not come up yet");
    bench.model.set_link(true);
    assert!(matches!(port.nic.link(), LinkState::Up { .. }));
    bench.model.set_link(false);
    assert_eq!((port.nic.link(), offer(&mut port)), (LinkState::Down, 1));
    port.close();
    bench.check_closed();
}

/// Interrupts since the last time.
fn interrupts(port: &Port) -> u64 {
    port.nic.events().into_iter().map(crate::vfio::sys::take_events).sum()
}

#[test]
fn the_link_interrupts_and_nothing_else_does() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(2)).unwrap();
    assert_eq!((port.nic.events().len(), interrupts(&port)), (1, 1), "the link has come up");
    // Until it has been looked at, once is enough.
    bench.model.set_link(false);
    assert_eq!(interrupts(&port), 0);
    assert_eq!(port.nic.link(), LinkState::Down);
    for (up, state) in [(true, LinkState::Up { speed_mbps: Some(1000) }), (false, LinkState::Down)] {
        bench.model.set_link(up);
        assert_eq!(interrupts(&port), 1);
        assert_eq!((port.nic.link(), interrupts(&port)), (state, 0));
    }
    bench.model.set_link(true);
    port.nic.link();
    interrupts(&port);
    for number in 0..200 {
        bench.model.receive(&of_flow(false, 3, number), 0);
        port.forward();
        bench.model.send(99);
    }
    port.nic.refresh();
    assert_eq!(interrupts(&port), 0, "packets are looked for");
    // A reset forgets it; it is set up again.
    bench.model.hang(true);
    assert!(bench.model.receive(&of_flow(false, 3, 0), 0).is_some());
    port.forward();
    let resets = bench.model.resets();
    for _ in 0..5 {
        port.nic.refresh();
        port.forward();
    }
    assert_eq!(bench.model.resets(), resets + 1);
    interrupts(&port);
    assert!(matches!(port.nic.link(), LinkState::Up { .. }));
    bench.model.set_link(false);
    assert_eq!((interrupts(&port), port.nic.link()), (1, LinkState::Down));
    let left = [EIMS, IMS].map(|mask| bench.model.peek(mask));
    let driven = || bench.model.peek(CTRL_EXT) & CTRL_EXT_DRV_LOAD != 0;
    assert!(driven(), "behind a reset, too");
    port.close();
    assert!(!driven(), "the firmware is told when a driver has gone");
    assert_eq!((left, [EIMS, IMS].map(|mask| bench.model.peek(mask))), ([1, ICR_LSC], [0, 0]));
    bench.check_closed();
}

#[test]
fn who_uses_the_phy_is_waited_for_and_no_longer_than_he_can_be_alive() {
    // Left behind by the dead: the port opens.
    let bench = Bench::new(1024, 2048);
    bench.model.keep_smbi(true);
    bench.open(&Wish::new(1)).unwrap().close();
    assert_eq!(bench.model.breaches(), (vec![], [0, 0]));
    bench.model.keep_phy(true);
    bench.open(&Wish::new(1)).unwrap().close();
    assert_eq!(bench.model.breaches(), (vec!["the firmware's PHY"], [0, 0]), "after its time");
    // In a recovery it is come back for, and the control thread is not held up.
    for (keep, frees) in
        [(Model::keep_smbi as fn(&Model, bool), true), (Model::keep_phy, true), (Model::keep_smbi, false)]
    {
        let bench = Bench::new(1024, 2048);
        let mut port = bench.open(&Wish::new(1)).unwrap();
        bench.model.hang(true);
        assert!(bench.model.receive(&of_flow(false, 3, 0), 0).is_some());
        port.forward();
        (0..2).for_each(|_| port.nic.refresh());
        port.forward();
        port.nic.refresh();
        bench.model.hang(false);
        // The reset was as long ago as that, but he has only just come.
        std::thread::sleep(semaphore::LIMIT);
        keep(&bench.model, true);
        port.nic.refresh();
        assert_eq!(port.nic.link(), LinkState::Down);
        if frees {
            keep(&bench.model, false);
        } else {
            port.nic.refresh();
            std::thread::sleep(semaphore::LIMIT);
        }
        // Or another time, where the machine is so busy that looks are far apart.
        for _ in 0..20 {
            port.nic.refresh();
            std::thread::sleep(semaphore::LIMIT / 10);
        }
        assert!(matches!(port.nic.link(), LinkState::Up { .. }));
        port.close();
        bench.check_closed();
    }
}

#[test]
fn who_has_the_guards_when_the_phy_is_given_back_keeps_them() {
    let bench = Bench::new(1024, 2048);
    let registers = bench.function.bar(0).unwrap();
    let access = PhyAccess::new(&registers);
    for again in [true, false] {
        let phy = access.acquire(Patience::LONG).unwrap();
        // He is in the middle of it, and away for a moment.
        bench.model.keep_smbi(true);
        drop(phy);
        assert_eq!(bench.model.breaches(), (vec![], [SWSM_SMBI, 1 << 1]), "nothing is taken from him");
        bench.model.keep_smbi(false);
        if again {
            // It is still ours.
            drop(access.acquire(Patience::SHORT).unwrap());
        } else {
            access.give_back(Patience::SHORT);
        }
        assert_eq!(bench.model.breaches(), (vec![], [0, 0]));
    }
    // A port sees to it once a second, or when it is closed.
    for close in [false, true] {
        bench.model.keep_smbi_from_mdic();
        let mut port = bench.open(&Wish::new(1)).unwrap();
        assert_eq!(bench.model.breaches(), (vec![], [SWSM_SMBI, 1 << 1]));
        bench.model.keep_smbi(false);
        if !close {
            port.nic.refresh();
            assert_eq!(bench.model.breaches(), (vec![], [0, 0]));
        }
        port.close();
        assert_eq!(bench.model.breaches(), (vec![], [0, 0]));
    }
    drop(access);
    bench.check_closed();
}

#[test]
fn a_port_that_is_silenced_stays_so() {
    let bench = Bench::new(1024, 2048);
    let mut port = bench.open(&Wish::new(1)).unwrap();
    port.nic.silence();
    let masks = || [EIMS, IMS].map(|mask| bench.model.peek(mask));
    assert_eq!((port.nic.events().len(), masks()), (0, [0, 0]));
    bench.model.hang(true);
    assert!(bench.model.receive(&of_flow(false, 3, 0), 0).is_some());
    for _ in 0..5 {
        port.forward();
        port.nic.refresh();
    }
    assert_eq!((port.nic.link(), masks()), (LinkState::Up { speed_mbps: Some(1000) }, [0, 0]));
    assert!(port.nic.extra_counters().contains(&("hang_recoveries".into(), 1)));
    port.close();
    bench.check_closed();
}

#[test]
fn without_msix_the_link_is_looked_at() {
    let bench = Bench::with_msix(1024, 2048, false);
    let mut port = bench.open(&Wish::new(1)).unwrap();
    assert_eq!((port.nic.events().len(), bench.model.peek(EIMS), bench.model.peek(IMS)), (0, 0, 0));
    bench.model.set_link(false);
    assert_eq!(port.nic.link(), LinkState::Down);
    port.close();
    bench.check_closed();
}

#[test]
fn what_it_cannot_do_is_refused_in_words() {
    let bench = Bench::new(1024, 2048);
    assert!(bench.refuses(&Wish { ring: 96, ..Wish::new(1) }).contains("power of two"));
    bench.model.force(RAL, 0x0000_0001);
    assert!(bench.refuses(&Wish::new(1)).contains("no Ethernet address"));
    bench.model.force(RAL, 0x0000_0002);
    bench.model.force(rxdctl(3), 0);
    assert!(bench.refuses(&Wish::new(4)).contains("receive queue 3 does not start"));
    bench.model.force(txdctl(9), QUEUE_ENABLE);
    assert!(bench.refuses(&Wish::new(1)).contains("transmit queue 9 does not stop"));
    bench.model.stick();
    assert!(bench.refuses(&Wish::new(1)).contains("out of reset"));
    assert_eq!(bench.pool.audit().held, 0);
    bench.check_closed();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(64), ..ProptestConfig::default() })]

    #[test]
    fn property_igb_survives_whatever_its_registers_say(
        forced in proptest::collection::vec((0_usize..0x6000, 0_u32..3, any::<u32>()), 0..12),
        late in proptest::collection::vec(
            (prop_oneof![0_usize..0x6000, (0_usize..16).prop_map(rqdpc), (0_usize..16).prop_map(tdh), Just(STATUS)],
             0_u32..3, any::<u32>()), 0..12),
        queues in 1_u16..5,
    ) {
        let value = |kind, any| match kind { 0 => 0, 1 => u32::MAX, _ => any };
        // Whole registers; the ones whose bits end a wait cost its whole limit, so they are left alone in most.
        let bench = Bench::new(2048, 2048);
        for (offset, kind, any) in &forced {
            if ![CTRL, STATUS, EEC, crate::vfio::intel::mdic::MDIC].contains(&(offset & !3)) {
                bench.model.force(offset & !3, value(*kind, *any));
            }
        }
        if let Ok(mut port) = bench.open(&Wish::new(queues)) {
            for (offset, kind, any) in &late {
                bench.model.force(offset & !3, value(*kind, *any));
                bench.model.receive(&of_flow(false, *any as u8, 0), 0);
                let mut batch = Batch::new();
                for rx in &mut port.rx {
                    rx.receive(&mut batch);
                }
                port.tx[0].transmit(&mut batch);
                port.nic.link();
                port.nic.refresh();
                port.nic.extra_counters();
            }
            port.close();
        }
        prop_assert_eq!((bench.pool.audit().held, bench.pool.audit().duplicated), (0, 0));
        prop_assert_eq!(bench.iommu.mappings(), 1);
    }
}
