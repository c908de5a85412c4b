//! NICs in a guest: the test sends frames into one and receives them from another.

mod binding;

use crate::common::{forwarder, kit, number};
use bench::vm::{Guest, Session, Traffic, VmError, build_static};
use std::time::Duration;

/// A machine whose NICs are behind an IOMMU, with all that it takes to give them to a program.
fn with_iommu(name: &str) -> Guest {
    Guest::new(name)
        .append("intel_iommu=on iommu=pt ipv6.disable=1")
        .device("intel-iommu,intremap=on")
        .module("vfio-pci")
        .module("vfio_iommu_type1")
}

/// Modules, groups and binding: what the VFIO drivers stand on. Nothing is driven here.
#[test]
fn guest_nics_can_be_given_to_vfio() {
    let Some(kit) = kit("guest_nics_can_be_given_to_vfio") else { return };
    let machine =
        with_iommu("vfio").nic("igb,addr=0x05").nic("e1000e,addr=0x06").timeout(Duration::from_secs(60));
    let bind = |session: &mut Session, address: &str, driver: &str| {
        session.run(&format!("echo {driver} >/sys/bus/pci/devices/{address}/driver_override"))?;
        session.run(&format!("echo {address} >/sys/bus/pci/drivers_probe"))?;
        let link = session.run(&format!("basename $(readlink /sys/bus/pci/devices/{address}/driver)"))?;
        assert_eq!(link, [driver]);
        session.run(&format!("basename $(readlink /sys/bus/pci/devices/{address}/iommu_group)"))
    };
    let (groups, _) = machine
        .converse(&kit, |session| {
            let groups = [
                bind(session, "0000:00:05.0", "vfio-pci")?.concat(),
                bind(session, "0000:00:06.0", "vfio-pci")?.concat(),
            ];
            let nodes = session.run("ls -1 /dev/vfio")?;
            assert!(groups.iter().all(|group| nodes.contains(group)), "{groups:?} {nodes:?}");
            Ok::<_, VmError>(groups)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(groups[0], groups[1]);
}

/// What two ports in the guest forward between NICs 0 and 1: all that was sent has come, in these modes, and all memory is back.
#[track_caller]
fn forwards_all(
    session: &mut Session,
    nics: [usize; 2],
    ports: [&str; 2],
    mode: &str,
) -> Result<(), VmError> {
    const FRAMES: u64 = 20_000;
    let wire = session.wire(nics[0], nics[1])?;
    forwarder::start(session, &wire, &format!("--port '{}' --port '{}'", ports[0], ports[1]))?;
    let tallies = wire.run(&Traffic { frames: FRAMES, ..Traffic::default() }).unwrap();
    let (report, said) = forwarder::stop(session)?;
    said.iter().for_each(|line| println!("{line}"));
    println!("{tallies:?}");
    assert!(tallies.is_perfect(FRAMES, true), "{ports:?}: {tallies:?} {report:#}");
    for port in 0..2 {
        let live = report["ports"][port]["mode"].as_str().unwrap();
        assert!(live.starts_with(mode), "{live}");
        // And says it to whoever reads along.
        let line =
            format!("INFO port {port}: {}, {mode}, native XDP", ports[port].split('?').next().unwrap());
        assert!(said.iter().any(|said| said.contains(&line)), "{line}: {said:#?}");
        assert!(number(&report, &format!("/ports/{port}/rx_packets")) >= FRAMES, "{report:#}");
    }
    assert_eq!(number(&report, "/pool/leaked"), 0, "{report:#}");
    assert_eq!(number(&report, "/pool/free"), number(&report, "/pool/frames"), "{report:#}");
    Ok(())
}

const VIRTIO: &str = "virtio-net-pci,disable-legacy=on";

/// A driver without zero-copy: the virtio-net of the default kernel.
#[test]
fn guest_af_xdp_falls_back_to_copy() {
    let Some(kit) = kit("guest_af_xdp_falls_back_to_copy") else { return };
    let l2fwd = build_static("apps", "l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let machine = Guest::new("copy")
        .append("ipv6.disable=1")
        .nic(&format!("{VIRTIO},addr=0x05"))
        .nic(&format!("{VIRTIO},addr=0x06"))
        .module("virtio_net")
        .file("bin/l2fwd", &l2fwd)
        .run("ip link set eth0 up && ip link set eth1 up")
        .timeout(Duration::from_secs(120));
    let run = |session: &mut Session| {
        forwards_all(session, [0, 1], ["afxdp:eth0", "afxdp:eth1"], "copy mode")?;
        let refused = session.run(
            "l2fwd --port 'afxdp:eth0?mode=zerocopy' --port mem:null --duration 1 2>&1 && echo ran || true",
        )?;
        assert!(
            refused.iter().any(|line| line.contains("eth0 cannot do zero-copy on queue 0: pass mode=auto")),
            "{refused:#?}"
        );
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
    let l2fwd = build_static("apps", "l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let machine = Guest::new("zero-copy")
        .kernel(&kernel)
        .append("ipv6.disable=1")
        .nic("igb,addr=0x05")
        .nic("igb,addr=0x07")
        .nic(&format!("{VIRTIO},addr=0x09"))
        .nic(&format!("{VIRTIO},addr=0x0a"))
        .module("igb")
        .module("virtio_net")
        .file("bin/l2fwd", &l2fwd)
        .run("for nic in 0 1 2 3; do ip link set eth$nic up; done; ip link")
        .timeout(Duration::from_secs(180));
    let run = |session: &mut Session| {
        for nics in [[0, 1], [2, 3]] {
            let ports = nics.map(|nic| format!("afxdp:eth{nic}?mode=zerocopy"));
            forwards_all(session, nics, [&ports[0], &ports[1]], "zero-copy")?;
        }
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
