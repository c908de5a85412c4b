//! Waiting for what another thread, another process or the kernel does, with an end.
#![forbid(unsafe_code)]

use anyhow::Result;
use std::thread;
use std::time::{Duration, Instant};

/// Asks again and again, for at most `limit`, until `done` says yes. Gives back its last answer.
pub(crate) fn until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(1));
    }
}
