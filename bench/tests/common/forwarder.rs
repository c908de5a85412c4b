//! An l2fwd that runs in a guest, while the test sends frames through it.
#![allow(dead_code, clippy::unwrap_used)]

use bench::vm::{Session, VmError, Wire};
use serde_json::Value;
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
