//! A pinned thread in isolation, for tests.
#![allow(dead_code, clippy::unwrap_used)]

use isolation::{Config, Isolated, Signals, Strictness};
use percpu::{Topology, pin_on_cpu};

/// Soft isolation that signals these.
pub(crate) fn soft(signals: Signals) -> Config {
    Config { signals, strictness: Strictness::Soft, ..Config::default() }
}

/// Runs `body` on a thread of its own, pinned to the last CPU.
pub(crate) fn on_pinned_thread<R: Send>(body: impl FnOnce(usize) -> R + Send) -> R {
    let run = || {
        let cpu = Topology::read().unwrap().allowed.iter().last().unwrap();
        let _pinned = pin_on_cpu(cpu).unwrap();
        body(cpu)
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs `body` in isolation, on a thread of its own.
pub(crate) fn isolated<R: Send>(config: &Config, body: impl FnOnce(&mut Isolated) -> R + Send) -> R {
    on_pinned_thread(|cpu| {
        let prepared = isolation::prepare(cpu, config).unwrap_or_else(|refusal| panic!("{refusal}"));
        let mut guard = prepared.enter().unwrap_or_else(|refusal| panic!("{refusal}"));
        body(&mut guard)
    })
}
