//! NICs in a guest: the test sends frames into one and receives them from another.

mod binding;
mod vfio;

use crate::common::hosts::Hosts;
use crate::common::{forwarder, kit, number};
use bench::vm::{Guest, Session, Traffic, VmError, build};
use std::time::Duration;

/// A machine whose NICs are behind an IOMMU, with all that it takes to give them to a program.
fn with_iommu(name: &str) -> Guest {
    Guest::new(name)
        .append("intel_iommu=on iommu=pt ipv6.disable=1")
        .device("intel-iommu,intremap=on")
        .module("vfio-pci")
        .module("vfio_iommu_type1")
}

/// With the DMA mapping of the kernel's, without which it has no zero-copy.
const VIRTIO: &str = "virtio-net-pci,disable-legacy=on,iommu_platform=on";

/// Gives the NIC at a PCI address to another driver, by its name; its IOMMU group.
#[track_caller]
fn bind(session: &mut Session, address: &str, driver: &str) -> Result<String, VmError> {
    session.run(&format!("echo {driver} >/sys/bus/pci/devices/{address}/driver_override"))?;
    session.run(&format!("echo {address} >/sys/bus/pci/drivers_probe"))?;
    let link = session.run(&format!("basename $(readlink /sys/bus/pci/devices/{address}/driver)"))?;
    assert_eq!(link, [driver]);
    Ok(session.run(&format!("basename $(readlink /sys/bus/pci/devices/{address}/iommu_group)"))?.concat())
}

/// The default kernel: its virtio-net has no zero-copy, and it has no driver for an igb, which vfio-pci takes, alone in its group.
#[test]
fn guest_af_xdp_falls_back_to_copy_and_vfio_pci_takes_a_nic() {
    let Some(kit) = kit("guest_af_xdp_falls_back_to_copy_and_vfio_pci_takes_a_nic") else { return };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let machine = Guest::new("copy")
        .append("intel_iommu=on iommu=pt ipv6.disable=1")
        .device("intel-iommu,intremap=on")
        .nic(&format!("{VIRTIO},addr=0x05"))
        .nic(&format!("{VIRTIO},addr=0x06"))
        .nic("igb,addr=0x07")
        .nic("e1000e,addr=0x08")
        .module("virtio_net")
        .module("vfio-pci")
        .module("vfio_iommu_type1")
        .file("bin/l2fwd", &l2fwd)
        .run("ip link set eth0 up && ip link set eth1 up")
        .timeout(Duration::from_secs(240));
    let run = |session: &mut Session| {
        forwarder::forwards_all(session, [0, 1], ["afxdp:eth0", "afxdp:eth1"], "copy mode, native XDP")?;
        let refused = session.run("l2fwd --port 'afxdp:eth0?mode=zerocopy' --port mem:null 2>&1 || true")?;
        let way_out = "eth0 cannot do zero-copy on queue 0: pass mode=auto";
        assert!(refused.iter().any(|line| line.contains(way_out)), "{refused:#?}");

        let groups = [bind(session, "0000:00:07.0", "vfio-pci")?, bind(session, "0000:00:08.0", "vfio-pci")?];
        assert_ne!(groups[0], groups[1]);
        let nodes = session.run("ls -1 /dev/vfio")?;
        assert!(groups.iter().all(|group| nodes.contains(group)), "{groups:?} {nodes:?}");
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}

/// The kernel writes nothing and reads nothing: the NICs do, in the frames of the pool.
#[test]
fn guest_af_xdp_zero_copy() {
    const TEST: &str = "guest_af_xdp_zero_copy";
    let Some(kit) = kit(TEST) else { return };
    let kernel = match kit.zero_copy_kernel() {
        Ok(kernel) => kernel,
        Err(error) => {
            eprintln!("SKIPPED {TEST}: {error}");
            return;
        }
    };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let machine = Guest::new("zero-copy")
        .kernel(&kernel)
        // Packet memory of the run before may go a moment after it.
        .memory_mib(1024)
        .append("ipv6.disable=1")
        .nic("igb,addr=0x05")
        .nic("igb,addr=0x07")
        .nic(&format!("{VIRTIO},addr=0x09"))
        .nic(&format!("{VIRTIO},addr=0x0a"))
        .module("igb")
        .module("virtio_net")
        .file("bin/l2fwd", &l2fwd)
        .run("for nic in 0 1 2 3; do ip link set eth$nic up; done; ip link")
        .timeout(Duration::from_secs(240));
    let run = |session: &mut Session| {
        // An igb has a queue for each CPU. Where frames of 2048 bytes are asked for, it would cut packets.
        let [first, second] = ["afxdp:eth0?mode=zerocopy&channels=1", "afxdp:eth1?mode=zerocopy&channels=1"];
        forwarder::forwards_all(session, [0, 1], [first, second], "zero-copy, native XDP")?;
        forwarder::ends_under_traffic(session, [0, 1], [first, second])?;
        let cut =
            session.run("l2fwd --port 'afxdp:eth0?mode=zerocopy&frame=2048' --port mem:null 2>&1 || true")?;
        assert!(cut.iter().any(|line| line.contains("pass frame=4096 or mode=auto")), "{cut:#?}");
        forwarder::forwards_all(session, [2, 3], ["afxdp:eth2", "afxdp:eth3"], "zero-copy, native XDP")?;
        forwarder::ends_under_traffic(session, [2, 3], ["afxdp:eth2", "afxdp:eth3"])
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}

/// Hosts that talk through the guest by NICs of two queues, whose flows keep their order while two queues carry them.
#[test]
fn guest_hosts_talk_through_nics_of_two_queues() {
    const TEST: &str = "guest_hosts_talk_through_nics_of_two_queues";
    let Some(kit) = kit(TEST) else { return };
    let Some(hosts) = Hosts::new(TEST) else { return };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let machine = Guest::new("hosts")
        .append("ipv6.disable=1")
        .module("virtio_net")
        .file("bin/l2fwd", &l2fwd)
        .run("ip link set eth0 up && ip link set eth1 up")
        .timeout(Duration::from_secs(240));
    let model = "virtio-net-pci,disable-legacy=on,mq=on,vectors=6";
    let machine = hosts.plug_into(machine, model, ["addr=0x05", "addr=0x06"], 2);
    let run = |session: &mut Session| {
        let wire = session.wire(0, 1)?;
        let ports = "--port 'afxdp:eth0?queues=2' --port 'afxdp:eth1?queues=2'";
        forwarder::start(session, &wire, &format!("{ports} --queues-per-worker 4 --no-mac-updating"))?;
        let tallies = wire.run(&Traffic::default()).unwrap();
        assert!(tallies.is_perfect(20_000, true), "{tallies:?}");
        hosts.ping_and_transfer();
        let (report, _) = forwarder::stop(session)?;
        for (port, queue) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let packets = number(&report, &format!("/ports/{port}/extra/driver_rx{queue}_xdp_packets"));
            assert!(packets > 1000, "port {port} queue {queue}: {report:#}");
        }
        assert_eq!(number(&report, "/pool/leaked"), 0, "{report:#}");
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
