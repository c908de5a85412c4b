//! Hosts whose only way to each other is a machine with `vfio:` ports.

use super::failures::refused;
use super::vfio::{ADDRESSES, E1000E, FRAMES, IGB, VIRTIO, assert_books, l2fwd_ports, port};
use super::with_iommu;
use crate::common::hosts::Hosts;
use crate::common::{forwarder, kit, number};
use bench::vm::{Session, Traffic, VmError, build};
use std::time::{Duration, Instant};

/// The same two queues by AF_XDP: flows keep their order while both carry them.
fn af_xdp_with_two_queues(session: &mut Session) -> Result<(), VmError> {
    session.run("ip link set eth0 up && ip link set eth1 up")?;
    let wire = session.wire(VIRTIO[0], VIRTIO[1])?;
    let ports = "--port 'afxdp:eth0?queues=2' --port 'afxdp:eth1?queues=2'";
    forwarder::start(session, &wire, &format!("{ports} --queues-per-worker 4 --no-mac-updating"))?;
    let tallies = wire.run(&Traffic { frames: FRAMES / 2, ..Traffic::default() }).unwrap();
    assert!(tallies.is_perfect(FRAMES / 2, true), "{tallies:?}");
    let (report, _) = forwarder::stop(session)?;
    for (port, queue) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let packets = number(&report, &format!("/ports/{port}/extra/driver_rx{queue}_xdp_packets"));
        assert!(packets > 100, "port {port} queue {queue}: {report:#}");
    }
    assert_eq!(number(&report, "/pool/leaked"), 0, "{report:#}");
    session.run("ip link set eth0 down && ip link set eth1 down")?;
    Ok(())
}

/// Hosts behind each kind of NIC talk through the machine; with virtio's, by two queues.
#[test]
fn guest_vfio_hosts_talk() {
    const TEST: &str = "guest_vfio_hosts_talk";
    let Some(kit) = kit(TEST) else { return };
    let Some(hosts) = [(); 3].map(|()| Hosts::new(TEST)).into_iter().collect::<Option<Vec<Hosts>>>() else {
        return;
    };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let virtio = "virtio-net-pci,disable-legacy=on,iommu_platform=on";
    let mut machine = with_iommu("vfio-hosts")
        .cpus(3)
        .memory_mib(1024)
        .append("hugepages=64")
        .module("virtio_net")
        .file("bin/l2fwd", &l2fwd)
        .timeout(Duration::from_secs(240));
    let models = ["igb,romfile=", "e1000e,romfile=", &format!("{virtio},mq=on,vectors=6,romfile=")];
    for (index, (hosts, model)) in hosts.iter().zip(models).enumerate() {
        let places = [0, 1].map(|which| format!("addr=0x{}", &ADDRESSES[2 * index + which][8..10]));
        let queues = if index == 2 { 2 } else { 1 };
        machine = hosts.plug_into(machine, model, [&places[0], &places[1]], queues);
    }
    let run = |session: &mut Session| {
        af_xdp_with_two_queues(session)?;
        for (hosts, nics) in hosts.iter().zip([IGB, E1000E, VIRTIO]) {
            let start = Instant::now();
            let options = if nics == VIRTIO { "queues=2" } else { "" };
            let ports = nics.map(|nic| port(nic, options));
            let wire = session.wire(nics[0], nics[1])?;
            let arguments = format!("{} --queues-per-worker 2 --no-mac-updating", l2fwd_ports(&ports));
            forwarder::start(session, &wire, &arguments)?;
            if nics == VIRTIO {
                let traffic = Traffic { frames: FRAMES, flows: 64, ..Traffic::default() };
                let tallies = wire.run(&traffic).unwrap();
                assert!(tallies.is_perfect(FRAMES, true), "{tallies:?}");
            }
            hosts.ping_and_transfer();
            let again = format!("l2fwd --port '{}' --port mem:null --duration 1", ports[0]);
            let said = refused(session, &again, "status 1")?;
            assert!(said.contains("is in use by") && said.contains("l2fwd"), "{said}");
            let (report, said) = forwarder::stop(session)?;
            assert_books(&report, if nics == VIRTIO { FRAMES } else { 0 });
            assert!(number(&report, "/ports/0/rx_bytes") > 50_000_000, "{report:#} {said:#?}");
            let packets: Vec<u64> = report["workers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|worker| worker["packets"].as_u64().unwrap())
                .collect();
            println!("{ports:?}: {packets:?} packets by worker in {:.1} s", start.elapsed().as_secs_f64());
            if nics == VIRTIO {
                assert!(packets.len() == 2 && packets.iter().all(|share| *share > FRAMES / 2), "{report:#}");
            }
        }
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
