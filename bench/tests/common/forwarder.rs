//! An l2fwd that runs in a guest, while the test sends frames through it.
#![allow(dead_code, clippy::unwrap_used)]

use super::number;
use bench::vm::{Session, Traffic, VmError, Wire};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How long a first frame may take: NICs lose their link when they are reset, and the machine may be busy.
const FIRST_FRAME: Duration = Duration::from_secs(60);

/// Starts the guest's `/bin/l2fwd` with these arguments, and returns when frames pass both ways of `wire`.
#[track_caller]
pub(crate) fn start(session: &mut Session, wire: &Wire, arguments: &str) -> Result<(), VmError> {
    let line = format!(
        "rm -f /tmp/report /tmp/status; (l2fwd {arguments} --stats-period 0 --report /tmp/report >/tmp/said 2>&1; echo $? >/tmp/status) &"
    );
    session.run(&line)?;
    if !wire.wait_until_passing(FIRST_FRAME).unwrap() {
        let said = session.run("cat /tmp/said; ls /tmp; ip link; dmesg | tail -n 30")?;
        panic!("nothing passes \"l2fwd {arguments}\": {said:#?}");
    }
    Ok(())
}

/// Ends it as Ctrl-C would; gives its report, and what it had to say.
#[track_caller]
pub(crate) fn stop(session: &mut Session) -> Result<(Value, Vec<String>), VmError> {
    session.run("killall -INT l2fwd || true")?;
    finish(session)
}

/// Waits for its own end, at most for 30 s; gives its report, and what it had to say.
#[track_caller]
pub(crate) fn finish(session: &mut Session) -> Result<(Value, Vec<String>), VmError> {
    session.run(
        "for turn in $(seq 600); do [ -s /tmp/status ] && break; sleep 0.05; done; killall -9 l2fwd || true",
    )?;
    let said = session.run("cat /tmp/said")?;
    let status = session.run("cat /tmp/status")?;
    assert_eq!(status, ["0"], "l2fwd has not ended well: {said:#?}");
    let report = session.run("cat /tmp/report")?.join("\n");
    let report = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}"));
    Ok((report, said))
}

/// Has two ports forward between two NICs, by their numbers: all that is sent comes, the ports' modes begin like this, and all memory is
/// back.
#[track_caller]
pub(crate) fn forwards_all(
    session: &mut Session,
    nics: [usize; 2],
    ports: [&str; 2],
    mode: &str,
) -> Result<(), VmError> {
    const FRAMES: u64 = 20_000;
    let wire = session.wire(nics[0], nics[1])?;
    start(session, &wire, &format!("--port '{}' --port '{}'", ports[0], ports[1]))?;
    let tallies = wire.run(&Traffic { frames: FRAMES, ..Traffic::default() }).unwrap();
    let (report, said) = stop(session)?;
    said.iter().for_each(|line| println!("{line}"));
    println!("{tallies:?}");
    assert!(tallies.is_perfect(FRAMES, true), "{ports:?}: {tallies:?} {report:#}");
    for port in 0..2 {
        let live = report["ports"][port]["mode"].as_str().unwrap();
        assert!(live.starts_with(mode), "{live}");
        // And says it to whoever reads along.
        let line = format!("INFO port {port}: {}, {mode}", ports[port].split('?').next().unwrap());
        assert!(said.iter().any(|said| said.contains(&line)), "{line}: {said:#?}");
        assert!(number(&report, &format!("/ports/{port}/rx_packets")) >= FRAMES, "{report:#}");
    }
    assert_eq!(number(&report, "/pool/leaked"), 0, "{report:#}");
    assert_eq!(number(&report, "/pool/free"), number(&report, "/pool/frames"), "{report:#}");
    Ok(())
}

/// Ended under traffic, the forwarder says of every packet what became of it, and all memory is back.
#[track_caller]
pub(crate) fn ends_under_traffic(
    session: &mut Session,
    nics: [usize; 2],
    ports: [&str; 2],
) -> Result<(), VmError> {
    let wire = session.wire(nics[0], nics[1])?;
    start(session, &wire, &format!("--port '{}' --port '{}'", ports[0], ports[1]))?;
    let traffic = Traffic { frames: u64::MAX, limit: FIRST_FRAME, ..Traffic::default() };
    let (come, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let goes_on = |so_far| {
        come.store(so_far, Ordering::Relaxed);
        !ended.load(Ordering::Relaxed)
    };
    let (tallies, report) = thread::scope(|scope| {
        let sending = scope.spawn(|| wire.run_while(&traffic, goes_on).unwrap());
        let mut end = || {
            while come.load(Ordering::Relaxed) < 1000 {
                // A word with the guest takes some milliseconds, and fails when its time is up.
                session.run("true")?;
            }
            stop(session)
        };
        let report = end();
        ended.store(true, Ordering::Relaxed);
        (sending.join().unwrap(), report)
    });
    let (report, _) = report?;
    for tally in [tallies.there, tallies.back] {
        assert!(tally.received > 0 && tally.lost > 0, "{tallies:?}");
        assert_eq!((tally.duplicated, tally.reordered, tally.corrupt), (0, 0, 0), "{tallies:?}");
    }
    let (mut received, mut sent, mut dropped) = (0, 0, 0);
    for port in 0..2 {
        received += number(&report, &format!("/ports/{port}/rx_packets"));
        sent += number(&report, &format!("/ports/{port}/tx_packets"));
        let drops = report["ports"][port]["drops"].as_object().unwrap();
        let ours = drops.iter().filter(|(reason, _)| !reason.starts_with("rx_"));
        dropped += ours.map(|(_, count)| count.as_u64().unwrap()).sum::<u64>();
    }
    println!("ended under traffic: {received} received, {sent} sent, {dropped} dropped; {tallies:?}");
    assert_eq!(received, sent + dropped, "{report:#}");
    // Probes among them.
    assert!(sent >= tallies.there.received + tallies.back.received, "{tallies:?} {report:#}");
    assert_eq!(number(&report, "/pool/leaked"), 0, "{report:#}");
    assert_eq!(number(&report, "/pool/free"), number(&report, "/pool/frames"), "{report:#}");
    Ok(())
}
