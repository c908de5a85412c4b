//! Opening against a real kernel and against one that refuses.
#![forbid(unsafe_code)]

use super::*;
use crate::afxdp::quiesce::REFUSED;
use crate::afxdp::release::{self, Prober};
use crate::afxdp::socket::TAKEN_LIMIT;
use crate::afxdp::sys;
use crate::counters::DropReason;
use crate::memory::{Batch, Pool, PoolConfig};
use crate::netlink::{RouteSocket, VethEnd};
use crate::port::PortId;
use nix::sched::{CloneFlags, unshare};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Runs `test` in a thread with a network namespace of its own, which goes with it.
fn in_namespace(name: &'static str, test: impl FnOnce() + Send + 'static) {
    let run = move || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return eprintln!("SKIPPED {name}: no network namespace of its own (run as root)");
        }
        test();
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Makes the pair a0 and a1, both up.
fn veth_pair(mtu: u32, queues: u32) {
    let route = RouteSocket::open().unwrap();
    let end = |name| VethEnd { name, mtu, rx_queues: queues, tx_queues: queues };
    route.create_veth(&end("a0"), &end("a1")).unwrap();
    for name in ["a0", "a1"] {
        route.set_up(Interface::find(name).unwrap().index()).unwrap();
    }
}

fn options(text: &str) -> Options {
    Options::read(&format!("afxdp:a0?{text}").parse().unwrap(), &[]).unwrap()
}

#[test]
fn frames_are_as_large_as_the_driver_needs_them_for_zero_copy_or_nobody_has_zero_copy() {
    let suit = |text: &str, driver: &str, mtu| {
        let spec: PortSpec = format!("afxdp:a0?{text}").parse().unwrap();
        let mut options = Options::read(&spec, &[]).unwrap();
        options
            .suit_driver(&spec, driver, mtu)
            .map(|()| options.frame_bytes)
            .map_err(|error| error.to_string())
    };
    for text in ["", "mode=zerocopy"] {
        assert_eq!(suit(text, "igb", 1500), Ok(4096));
        assert_eq!(suit(text, "virtio_net", 1500), Ok(2048));
    }
    // No zero-copy, no need.
    for text in ["mode=copy", "bind=skb", "frame=2048"] {
        assert_eq!(suit(text, "igb", 1500), Ok(2048));
    }
    assert_eq!(suit("", "igb", 4000), Ok(2048));
    let refused = suit("mode=zerocopy&frame=2048", "igb", 1500).unwrap_err();
    assert!(
        refused.contains("cuts packets") && refused.contains("pass frame=4096 or mode=auto"),
        "{refused}"
    );
    let refused = suit("mode=zerocopy", "igb", 4000).unwrap_err();
    assert!(refused.contains("MTU is 4000") && refused.ends_with("pass mode=auto"), "{refused}");
}

#[test]
fn what_the_kernel_refuses_at_binding_is_given_up_where_the_choice_is_ours() {
    const ALL: [Step; 7] =
        [Step::Socket, Step::Register, Step::Rings, Step::Frames, Step::BusyPoll, Step::Bind, Step::Redirect];
    let agreed = |zero_copy, multi_buffer| Agreed { hook: Hook::Native, zero_copy, multi_buffer };
    let concede = |agreed: &mut Agreed, step, code, options: &str| {
        let failed = Failed { step, error: io::Error::from_raw_os_error(code) };
        let given = agreed.concede(&failed, &self::options(options));
        (given, agreed.zero_copy, agreed.multi_buffer)
    };
    for code in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOENT] {
        // Zero-copy first, then several buffers, then nothing is left.
        let mut both = agreed(true, true);
        let bind = |both: &mut Agreed| concede(both, Step::Bind, code, "");
        assert_eq!(bind(&mut both), (Some(Given::ZeroCopy), false, true));
        assert_eq!(bind(&mut both), (Some(Given::MultiBuffer), false, false));
        assert_eq!(bind(&mut both), (None, false, false));
        // What the user asked for is not given up, and what comes after it may be.
        let mut wanted = agreed(true, false);
        assert_eq!(concede(&mut wanted, Step::Bind, code, "mode=zerocopy"), (None, true, false));
        let mut wanted = agreed(true, true);
        let given = concede(&mut wanted, Step::Bind, code, "multibuffer=on");
        assert_eq!(given, (Some(Given::ZeroCopy), false, true));
        assert_eq!(concede(&mut wanted, Step::Bind, code, "multibuffer=on"), (None, false, true));
        // No other step says anything about them.
        for step in ALL.into_iter().filter(|step| *step != Step::Bind) {
            assert_eq!(concede(&mut agreed(true, true), step, code, ""), (None, true, true), "{step:?}");
        }
    }
    for code in [libc::EBUSY, libc::EPERM, libc::ENODEV, libc::ENOBUFS, libc::ENETDOWN] {
        assert_eq!(concede(&mut agreed(true, true), Step::Bind, code, ""), (None, true, true));
    }
}

#[test]
fn namespace_a_zero_copy_bind_that_the_kernel_refuses_ends_in_copy_mode() {
    in_namespace("namespace_a_zero_copy_bind_that_the_kernel_refuses_ends_in_copy_mode", || {
        veth_pair(9000, 2);
        let pool = Pool::new(&PoolConfig { frames: 8192, ..PoolConfig::default() }).unwrap();
        // A driver that the table says nothing of.
        let unknown = quirks::of("");
        assert!(unknown.no_zero_copy.is_none());
        let open = |text: &str| {
            let spec: PortSpec = format!("afxdp:a0?queues=2&rx_ring=64&tx_ring=64&{text}").parse().unwrap();
            let context = OpenContext { pool: &pool, id: PortId(0), tx_queues: 2, promiscuous: false };
            let options = Options::read(&spec, &[]).unwrap();
            let opening = Opening { spec: &spec, name: "a0", options: &options, context: &context };
            opening.run(Arc::new(Interface::find("a0").unwrap()), unknown)
        };
        let port = open("").unwrap();
        let mode = port.port.mode();
        assert!(mode.contains("copy mode, native XDP") && mode.contains("multi-buffer"), "{mode}");
        drop(port);
        let error = open("mode=zerocopy").err().unwrap().to_string();
        assert!(error.contains("cannot do zero-copy on queue 0: pass mode=auto"), "{error}");
        let audit = pool.audit();
        assert_eq!((audit.held, audit.withheld, audit.duplicated), (0, 0, 0));
    });
}

#[test]
fn namespace_what_is_under_way_when_a_queue_is_closed_is_counted_whatever_the_wait() {
    in_namespace("namespace_what_is_under_way_when_a_queue_is_closed_is_counted_whatever_the_wait", || {
        veth_pair(1500, 1);
        let pool = Pool::new(&PoolConfig { frames: 16384, ..PoolConfig::default() }).unwrap();
        let open = |name: &str| {
            let spec: PortSpec = format!("afxdp:{name}?rx_ring=1024&tx_ring=256").parse().unwrap();
            let plan = crate::drivers::check(&spec).unwrap();
            let context = OpenContext { pool: &pool, id: PortId(0), tx_queues: 1, promiscuous: false };
            plan.open(&context).unwrap()
        };
        let OpenPort { port: _from, rx: _, tx: mut from } = open("a1");
        let receiver = Interface::find("a0").unwrap();
        // What the driver gave to a socket that took it.
        let redirected = || {
            let counters = receiver.counters();
            let counter = counters.iter().find(|(name, _)| name.ends_with("queue_0_xdp_redirect"));
            counter.map_or(0, |(_, value)| *value)
        };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Set however the rounds end, or the flood would be waited for.
            let _stop = StopAtTheEnd(&stop);
            let flood = || {
                let (mut batch, queue) = (Batch::new(), &mut from[0]);
                while !stop.load(Ordering::Relaxed) {
                    while batch.room() > 0
                        && let Some(mut packet) = pool.allocate(60)
                    {
                        packet.data_mut().fill(2);
                        drop(batch.push(packet));
                    }
                    queue.transmit(&mut batch);
                    if queue.needs_doorbell() {
                        queue.doorbell().unwrap().ring().unwrap();
                    }
                }
            };
            scope.spawn(flood);
            for round in 0..40 {
                REFUSED.set(round % 2 == 1);
                let before = redirected();
                let OpenPort { port, mut rx, tx } = open("a0");
                if round == 0 {
                    // A thread of the kernel's polls up to 64 packets at a time, beside ours; else each is polled when
                    // it is sent. It stays so, but there must be something to poll.
                    poll_in_a_thread("a0");
                }
                let counters = rx[0].counters().clone();
                let mut batch = Batch::new();
                while counters.packets.get() < 200 {
                    rx[0].receive(&mut batch);
                    batch.clear();
                }
                drop(rx);
                // The driver adds up when its poll ends; by now the socket gets nothing more.
                sys::membarrier_global()
                    .or_else(|_| sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop))
                    .unwrap();
                let given = redirected() - before;
                drop((port, tx));
                let taken = counters.packets.get() + counters.drops(DropReason::RxUnread).get();
                assert_eq!(taken, given, "round {round}");
            }
        });
    });
}

/// By the namespace's own `/sys`, mounted for a moment where nobody else sees it.
fn poll_in_a_thread(interface: &str) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = "mount --make-rprivate / && mount -t sysfs none \"$1\" && echo 1 > \"$1/class/net/$2/threaded\"; status=$?; umount \"$1\"; exit $status";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(folder.path()).arg(interface);
    assert!(command.status().unwrap().success());
}

/// Ends the flood.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn busy_polling_without_deferred_interrupts_is_answered_by_what_to_type() {
    let path = |name: &str| Path::new("/sys/class/net/eth0").join(name);
    assert_eq!(busy_poll_advice(&[]), None);
    let both = busy_poll_advice(&[path("napi_defer_hard_irqs"), path("gro_flush_timeout")]).unwrap();
    let commands = "echo 2 > /sys/class/net/eth0/napi_defer_hard_irqs && echo 200000 > /sys/class/net/eth0/gro_flush_timeout";
    assert!(both.contains(&format!("run \"{commands}\" as root")), "{both}");
    assert!(!busy_poll_advice(&[path("gro_flush_timeout")]).unwrap().contains("defer_hard"));
}

#[test]
fn namespace_a_queue_that_is_taken_fails_the_opening_and_costs_no_frame() {
    in_namespace("namespace_a_queue_that_is_taken_fails_the_opening_and_costs_no_frame", || {
        veth_pair(1500, 2);
        let index = Interface::find("a0").unwrap().index();
        let pool = Pool::new(&PoolConfig { frames: 16384, ..PoolConfig::default() }).unwrap();
        let other = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let holder = Prober::new(&other, index, 1).unwrap();
        assert!(holder.wait());
        let open = || {
            let spec: PortSpec = "afxdp:a0?queues=2&rx_ring=2048".parse().unwrap();
            let plan = crate::drivers::check(&spec).unwrap();
            plan.open(&OpenContext { pool: &pool, id: PortId(0), tx_queues: 2, promiscuous: false })
        };
        let started = Instant::now();
        let error = open().err().unwrap().to_string();
        let elapsed = started.elapsed();
        assert!(error.contains("queue 1 of a0 is in use by another AF_XDP socket"), "{error}");
        // It waits for the holder to go, and not once more for what it holds itself.
        assert!(elapsed >= TAKEN_LIMIT && elapsed < TAKEN_LIMIT.mul_f32(1.8), "{elapsed:?}");
        let audit = pool.audit();
        assert_eq!((audit.held, audit.withheld, audit.duplicated), (0, 0, 0));
        // A holder that goes only after the longest time that was ever seen is waited for.
        let opened = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(release::SEEN);
                drop(holder);
            });
            open()
        });
        // Nothing of it is left: it opens, program and all.
        drop(opened.unwrap());
        assert_eq!(pool.audit().held, 0);
    });
}
