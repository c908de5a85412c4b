//! The drivers of `vfio:` ports, on NICs that QEMU plays behind an IOMMU: one machine with two of each, and one run of l2fwd after another.

use super::with_iommu;
use crate::common::{forwarder, kit, number};
use bench::vm::{Guest, Session, Traffic, VmError, build, build_static};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The NICs by their numbers: two of each kind, at these addresses.
pub(super) const IGB: [usize; 2] = [0, 1];
pub(super) const E1000E: [usize; 2] = [2, 3];
pub(super) const VIRTIO: [usize; 2] = [4, 5];
pub(super) const ADDRESSES: [&str; 6] =
    ["0000:00:04.0", "0000:00:06.0", "0000:00:08.0", "0000:00:09.0", "0000:00:0a.0", "0000:00:0b.0"];
/// What every driver says of itself.
const LABEL: &str = "never run on silicon";

/// Frames of 60 to 1514 bytes, each way.
pub(super) const FRAMES: u64 = 20_000;
/// Of up to 9014 bytes.
const JUMBO_FRAMES: u64 = 2_000;

fn machine(name: &str) -> Guest {
    let virtio = "virtio-net-pci,disable-legacy=on,iommu_platform=on,packed=on,romfile=";
    with_iommu(name)
        .cpus(3)
        .memory_mib(1024)
        // Two CPUs that the kernel leaves alone: the workers'.
        .append("nohz_full=1-2 rcu_nocbs=1-2 isolcpus=managed_irq,domain,1-2 hugepages=64")
        .nic("igb,addr=0x04,romfile=")
        .nic("igb,addr=0x06,romfile=")
        .nic("e1000e,addr=0x08,romfile=")
        .nic("e1000e,addr=0x09,romfile=")
        .nic(&format!("{virtio},addr=0x0a"))
        .nic(&format!("{virtio},addr=0x0b"))
        .module("virtio_net")
        // A process is not given isolated CPUs by itself.
        .run("taskset -p 7 1")
}

/// A port's specification.
pub(super) fn port(nic: usize, options: &str) -> String {
    format!("vfio:{}{}{options}", ADDRESSES[nic], if options.is_empty() { "" } else { "?" })
}

pub(super) fn l2fwd_ports(ports: &[String]) -> String {
    let ports: Vec<String> = ports.iter().map(|port| format!("--port '{port}'")).collect();
    ports.join(" ")
}

/// Nothing was lost of what passed, by the report: received is sent, all frames are back.
#[track_caller]
pub(super) fn assert_books(report: &Value, frames: u64) {
    let sum = |what: &str| (0..2).map(|port| number(report, &format!("/ports/{port}/{what}"))).sum::<u64>();
    assert!(sum("rx_packets") >= 2 * frames, "{report:#}");
    let drops: u64 = report["ports"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|port| port["drops"].as_object().unwrap().values())
        .map(|count| count.as_u64().unwrap())
        .sum();
    // A probe may meet a link that is not up yet.
    assert!(sum("rx_packets") <= sum("tx_packets") + drops, "{report:#}");
    assert_eq!(number(report, "/pool/leaked"), 0, "{report:#}");
    assert_eq!(number(report, "/pool/free"), number(report, "/pool/frames"), "{report:#}");
}

/// All that is sent into one NIC comes out of the other, both ways.
#[track_caller]
fn forwards(
    session: &mut Session,
    nics: [usize; 2],
    options: &str,
    arguments: &str,
    traffic: &Traffic,
) -> Result<Value, VmError> {
    forwards_between(session, nics, nics.map(|nic| port(nic, options)), arguments, traffic)
}

/// The same with these ports.
#[track_caller]
fn forwards_between(
    session: &mut Session,
    nics: [usize; 2],
    ports: [String; 2],
    arguments: &str,
    traffic: &Traffic,
) -> Result<Value, VmError> {
    let start = Instant::now();
    let wire = session.wire(nics[0], nics[1])?;
    forwarder::start(session, &wire, &format!("{} {arguments}", l2fwd_ports(&ports)))?;
    let tallies = wire.run(traffic).unwrap();
    let (report, said) = forwarder::stop(session)?;
    println!("{ports:?}: {:?} in {:.1} s", tallies.there, start.elapsed().as_secs_f64());
    assert!(tallies.is_perfect(traffic.frames, true), "{ports:?}: {tallies:?} {report:#} {said:#?}");
    assert_books(&report, traffic.frames);
    for (index, port) in ports.iter().enumerate().filter(|(_, port)| port.starts_with("vfio:")) {
        let mode = report["ports"][index]["mode"].as_str().unwrap();
        assert!(mode.contains(LABEL), "{mode}");
        let name = port.split('?').next().unwrap();
        let warned = |line: &String| [LABEL, "WARN", name].iter().all(|word| line.contains(word));
        assert!(said.iter().any(warned), "{said:#?}");
    }
    Ok(report)
}

/// Every kind to its like, mixed pairs, both rings of virtio, jumbo frames.
fn all_pairs(session: &mut Session) -> Result<(), VmError> {
    let traffic = Traffic { frames: FRAMES, ..Traffic::default() };
    for (nics, options) in [
        (IGB, ""),
        (E1000E, ""),
        (VIRTIO, "ring=packed"),
        (VIRTIO, "ring=split"),
        ([IGB[0], E1000E[0]], ""),
        ([E1000E[1], VIRTIO[0]], ""),
        ([VIRTIO[1], IGB[1]], ""),
    ] {
        forwards(session, nics, options, "", &traffic)?;
    }
    let jumbo = Traffic { frames: JUMBO_FRAMES, sizes: 60..=9014, in_flight: 16, ..Traffic::default() };
    for nics in [IGB, E1000E, VIRTIO] {
        forwards(session, nics, "mtu=9000", "", &jumbo)?;
    }
    Ok(())
}

/// Two workers, each with a queue of each port: both have their share, and no flow changes its order.
fn shares(session: &mut Session) -> Result<(), VmError> {
    for nics in [IGB, E1000E] {
        let traffic = Traffic { frames: FRAMES, flows: 64, ..Traffic::default() };
        let report = forwards(session, nics, "queues=2", "--queues-per-worker 2", &traffic)?;
        let packets = [0, 1].map(|worker| number(&report, &format!("/workers/{worker}/packets")));
        println!("{packets:?} packets by worker");
        assert!(packets.iter().all(|share| *share > 2 * FRAMES / 4), "{report:#}");
    }
    Ok(())
}

/// Beside the kernel's drivers: AF_XDP, which copies with this kernel's virtio-net, and from AF_XDP to VFIO in one packet memory.
fn beside_af_xdp(session: &mut Session) -> Result<(), VmError> {
    session.run("ip link set eth0 up && ip link set eth1 up")?;
    forwarder::forwards_all(session, VIRTIO, ["afxdp:eth0", "afxdp:eth1"], "copy mode, native XDP")?;
    let refused = session.run("l2fwd --port 'afxdp:eth0?mode=zerocopy' --port mem:null 2>&1 || true")?;
    let way_out = "eth0 cannot do zero-copy on queue 0: pass mode=auto";
    assert!(refused.iter().any(|line| line.contains(way_out)), "{refused:#?}");
    let traffic = Traffic { frames: 5_000, ..Traffic::default() };
    let ports = ["afxdp:eth0".to_owned(), port(IGB[0], "")];
    forwards_between(session, [VIRTIO[0], IGB[0]], ports, "", &traffic)?;
    // In use by the kernel, it is not taken.
    session.run("ip addr add 10.9.9.1/24 dev eth0")?;
    let taken = format!("l2fwd --port {} --port mem:null 2>&1 || true", port(VIRTIO[0], ""));
    let refused = session.run(&taken)?;
    assert!(refused.iter().any(|line| line.contains("is in use: its interface eth0 is up")), "{refused:#?}");
    session.run("ip addr flush dev eth0; ip link set eth0 down && ip link set eth1 down")?;
    Ok(())
}

/// A NIC's one interrupt: how often it came, and the CPUs that it may go to.
fn link_interrupt(session: &mut Session, nic: usize) -> Result<(u64, String), VmError> {
    let line = session.run(&format!("grep 'vfio-msix.*{}' /proc/interrupts", ADDRESSES[nic]))?.concat();
    let (irq, counts) = line.split_once(':').unwrap_or_else(|| panic!("{line}"));
    let came = counts.split_whitespace().map_while(|count| count.parse::<u64>().ok()).sum();
    Ok((came, session.run(&format!("cat /proc/irq/{}/smp_affinity_list", irq.trim()))?.concat()))
}

/// Each has one, for its link, and the control core's CPU alone gets it.
fn link_interrupts(session: &mut Session) -> Result<(), VmError> {
    for nics in [IGB, E1000E, VIRTIO] {
        let ports = nics.map(|nic| port(nic, ""));
        let wire = session.wire(nics[0], nics[1])?;
        forwarder::start(session, &wire, &l2fwd_ports(&ports))?;
        for nic in nics {
            let (came, cpus) = link_interrupt(session, nic)?;
            println!("{}: {came} interrupts, to CPU {cpus}", port(nic, ""));
            assert_eq!(cpus, "0");
            // Its link was negotiated when the port was opened.
            assert!(nics != IGB || came > 0);
        }
        forwarder::stop(session)?;
    }
    Ok(())
}

/// Ended under traffic, every packet is accounted for.
fn end_under_traffic(session: &mut Session) -> Result<(), VmError> {
    for nics in [IGB, E1000E, VIRTIO] {
        let [first, second] = nics.map(|nic| port(nic, ""));
        forwarder::ends_under_traffic(session, nics, [&first, &second])?;
    }
    Ok(())
}

/// The project's promise: a worker that drives NICs, under traffic, and the kernel leaves it alone.
fn strict(session: &mut Session) -> Result<(), VmError> {
    session.run("guest --quieten")?;
    for nics in [IGB, VIRTIO] {
        let ports = nics.map(|nic| port(nic, ""));
        let wire = session.wire(nics[0], nics[1])?;
        let arguments = format!("{} --isolation strict --violations /tmp/violations", l2fwd_ports(&ports));
        session.run("rm -f /tmp/violations")?;
        forwarder::start(session, &wire, &arguments)?;
        let start = Instant::now();
        // As long as it takes, in pieces: nothing but the time says when five seconds are over.
        let mut frames = 0;
        while start.elapsed() < Duration::from_secs(5) {
            let traffic = Traffic { frames: 2_000, ..Traffic::default() };
            let tallies = wire.run(&traffic).unwrap();
            assert!(tallies.is_perfect(traffic.frames, true), "{tallies:?}");
            frames += traffic.frames;
        }
        let (report, said) = forwarder::stop(session)?;
        let told = session.run("cat /tmp/violations")?;
        println!("{ports:?}: {frames} frames each way in strict isolation");
        assert_books(&report, frames);
        let isolation = &report["isolation"];
        assert_eq!(isolation["mode"], "strict", "{report:#}");
        assert_eq!(isolation["tickless"], true, "{report:#}");
        for none in ["interrupts", "softirqs", "threads", "trace_lost", "allowed", "not_recorded", "dropped"]
        {
            assert_eq!(number(&report, &format!("/isolation/{none}")), 0, "{report:#} {told:#?}");
        }
        assert!(isolation["signals"].as_object().unwrap().is_empty(), "{report:#} {told:#?}");
        assert!(report["violations"].as_object().unwrap().is_empty(), "{report:#} {told:#?} {said:#?}");
    }
    Ok(())
}

/// A device that is sent outside: the IOMMU says so, each way, and the packet memory stays as it was (`bench/vm/busy/src/outside.rs` looks).
fn faults(session: &mut Session) -> Result<(), VmError> {
    for nics in [IGB, E1000E] {
        session.run("dmesg -c >/dev/null; rm -f /tmp/sent /tmp/status")?;
        session.run(&format!(
            "(busy outside --port '{}' --sent /tmp/sent >/tmp/said 2>&1; echo $? >/tmp/status) &",
            port(nics[0], "")
        ))?;
        let wire = session.wire(nics[0], nics[1])?;
        let device = &ADDRESSES[nics[0]][5..];
        let read = session.run(&format!(
            "for turn in $(seq 300); do dmesg | grep 'DMAR: .DMA Read.*{device}' && break; sleep 0.05; done"
        ))?;
        // Again and again, too: what the kernel leaves untold it does not tell later.
        let traffic =
            Traffic { frames: 20, both_ways: false, limit: Duration::from_millis(500), ..Traffic::default() };
        let mut write = Vec::new();
        for _ in 0..30 {
            // Nothing can come out at the other end, which is not open.
            assert_eq!(wire.run(&traffic).unwrap().there.received, 0);
            write = session.run(&format!("dmesg | grep 'DMAR: .DMA Write.*{device}' || true"))?;
            if !write.is_empty() {
                break;
            }
        }
        session.run("touch /tmp/sent")?;
        let said = session.run("for turn in $(seq 400); do [ -s /tmp/status ] && break; sleep 0.05; done; cat /tmp/said /tmp/status")?;
        let log = session.run("dmesg")?;
        assert_eq!(said.last().map(String::as_str), Some("0"), "{said:#?} {log:#?}");
        for fault in [read, write] {
            println!("{}", fault.first().unwrap_or_else(|| panic!("no fault: {log:#?} {said:#?}")));
        }
        // And it drives again.
        forwards(session, nics, "", "", &Traffic { frames: 1_000, ..Traffic::default() })?;
    }
    Ok(())
}

/// The driver that a device has now; nothing where it has none.
fn driver_of(session: &mut Session, nic: usize) -> Result<String, VmError> {
    let link = format!("/sys/bus/pci/devices/{}/driver", ADDRESSES[nic]);
    Ok(session.run(&format!("[ -e {link} ] && basename $(readlink {link}) || true"))?.concat())
}

/// Binds away from the kernel's driver and back, again and again; is killed under traffic, and restored.
fn binds_and_is_killed(session: &mut Session) -> Result<(), VmError> {
    let ports = VIRTIO.map(|nic| port(nic, ""));
    let formerly = [driver_of(session, VIRTIO[0])?, driver_of(session, IGB[0])?];
    assert_eq!(formerly, ["virtio-pci", ""]);
    let groups = session.run("ls -1 /dev/vfio")?;
    session.run(&format!(
        "for round in $(seq 20); do l2fwd {} --duration 0.1 --stats-period 0 >/tmp/said 2>&1 || {{ echo round $round; cat /tmp/said; exit 1; }}; [ $(basename $(readlink /sys/bus/pci/devices/{}/driver)) = virtio-pci ] || {{ echo round $round: no driver; exit 1; }}; done",
        l2fwd_ports(&ports), ADDRESSES[VIRTIO[0]]
    ))?;
    assert_eq!(session.run("ls -1 /dev/vfio")?, groups, "no group is left with VFIO");
    assert_eq!(session.run("cat /proc/net/dev | grep -c eth")?, ["2"], "the kernel has its interfaces back");
    assert_eq!(session.run("ls -A /run/isoplane 2>/dev/null | grep -c pci || true")?, ["0"]);

    for nics in [VIRTIO, IGB] {
        let ports = nics.map(|nic| port(nic, ""));
        let wire = session.wire(nics[0], nics[1])?;
        let formerly = driver_of(session, nics[0])?;
        forwarder::start(session, &wire, &l2fwd_ports(&ports))?;
        session.run("(sleep 0.3; killall -9 l2fwd) >/dev/null 2>&1 &")?;
        let traffic = Traffic { limit: Duration::from_secs(2), frames: 1_000_000, ..Traffic::default() };
        let tallies = wire.run(&traffic).unwrap();
        assert!(tallies.there.received > 100 && tallies.there.lost > 0, "{tallies:?}");
        assert_eq!(driver_of(session, nics[0])?, "vfio-pci", "a killed process undoes nothing");
        // At once again, and then it knows what was before.
        forwards(session, nics, "", "", &Traffic { frames: 1_000, ..Traffic::default() })?;
        assert_eq!(driver_of(session, nics[0])?, formerly);

        forwarder::start(session, &wire, &l2fwd_ports(&ports))?;
        session.run("killall -9 l2fwd; while pidof l2fwd; do sleep 0.05; done")?;
        let said = session.run("isoplane restore 2>&1")?;
        for nic in nics {
            assert!(said.iter().any(|line| line.contains(ADDRESSES[nic])), "{said:#?}");
            assert_eq!(driver_of(session, nic)?, formerly, "{said:#?}");
        }
    }
    Ok(())
}

#[test]
fn guest_vfio_drives_nics() {
    let Some(kit) = kit("guest_vfio_drives_nics") else { return };
    let guest = build_static("guest", "guest").unwrap_or_else(|error| panic!("{error}"));
    let [l2fwd, isoplane, busy] =
        ["l2fwd", "isoplane", "busy"].map(|program| build(program).unwrap_or_else(|error| panic!("{error}")));
    let machine = machine("vfio-drives")
        .file("bin/l2fwd", &l2fwd)
        .file("bin/busy", &busy)
        .file("bin/isoplane", &isoplane)
        .file("bin/guest", &guest)
        .timeout(Duration::from_secs(240));
    let run = |session: &mut Session| {
        let start = Instant::now();
        let took = |what: &str| println!("{what}: done after {:.1} s", start.elapsed().as_secs_f64());
        all_pairs(session)?;
        took("pairs");
        shares(session)?;
        took("shares");
        link_interrupts(session)?;
        took("link interrupts");
        beside_af_xdp(session)?;
        took("beside AF_XDP");
        end_under_traffic(session)?;
        took("ends");
        faults(session)?;
        took("faults");
        binds_and_is_killed(session)?;
        took("binding");
        strict(session)?;
        took("strict isolation");
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
