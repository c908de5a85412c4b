//! NICs in a guest: the test sends frames into one and receives them from another.

mod binding;
mod failures;
mod vfio;
mod vfio_hosts;

use crate::common::{forwarder, kit};
use bench::vm::{Guest, Session, build};
use std::time::Duration;

/// A machine whose NICs are behind an IOMMU, with all that it takes to give them to a program. With `eim` its local APICs are reached by instructions:
/// QEMU loses accesses to memory while another CPU moves the devices' registers about, and sometimes it was the end of an interrupt.
fn with_iommu(name: &str) -> Guest {
    with_iommu_device(name, "intel-iommu,intremap=on,eim=on")
}

fn with_iommu_device(name: &str, device: &str) -> Guest {
    Guest::new(name)
        .append("intel_iommu=on iommu=pt ipv6.disable=1")
        .device(device)
        .module("vfio-pci")
        .module("vfio_iommu_type1")
}

/// With the DMA mapping of the kernel's, without which it has no zero-copy.
const VIRTIO: &str = "virtio-net-pci,disable-legacy=on,iommu_platform=on";

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
