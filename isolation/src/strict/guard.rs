//! A thread's stay in isolation: what it asks for, how it enters, what it learns, how it leaves.
//!
//! [`prepare`] does all that may take time, memory or privilege, [`Prepared::enter`] arms. A program with several workers prepares
//! all of them before the first one enters, since preparing (opening trace events, locking memory) interrupts every CPU.
#![allow(unsafe_code)]

use super::refusal::Refusal;
use super::shared::{OPEN, SHUT, Shared, Wishes, attention};
use super::source::{Signals, Source};
use super::sys::AlternateStack;
use super::traps::Traps;
use super::{handler, sys};
use crate::memory::KeptFromChildren;
use crate::watched::Watched;
use crate::{KernelIsolation, memory, quiet};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use percpu::{CpuList, IsolatedMark, Topology, tsc};
use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What to do where the machine cannot give full isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Say so, and go on.
    Soft,
    /// Refuse.
    Strict,
}

/// What a violation does to the stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is counted, and the stay goes on.
    Persistent,
    /// It ends the stay: the thread learns it at its next turn, and may enter again.
    OneShot,
}

/// What a thread wants of its isolation.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Which kernel entries are signalled.
    pub signals: Signals,
    /// What a violation does.
    pub mode: Mode,
    /// What to do where the machine cannot give it.
    pub strictness: Strictness,
    /// System calls are let through unsignalled, and the thread quiesces after them.
    pub allow_syscalls: bool,
    /// The same for page faults.
    pub allow_exceptions: bool,
    /// Wait at the next turn after any kernel entry until no more come.
    pub quiesce: bool,
    /// How long entering waits for the tick to stop, and quiescing for quiet, at most.
    pub quiesce_limit: Duration,
    /// The thread's own memory (stack, records) is not given to children by fork, so that a fork elsewhere in the process causes no
    /// copy-on-write faults here. What the program has on its heap is for the program to keep: [`crate::memory::KeptFromChildren`].
    pub keep_from_children: bool,
    /// The first violation ends the process by SIGABRT, in the place that made it.
    pub abort: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            signals: Signals::ALL,
            mode: Mode::Persistent,
            strictness: Strictness::Strict,
            allow_syscalls: false,
            allow_exceptions: false,
            quiesce: false,
            quiesce_limit: Duration::from_secs(2),
            keep_from_children: true,
            abort: false,
        }
    }
}

/// Quiet for this long is quiet: more than two ticks at HZ=250.
const QUIET: Duration = Duration::from_millis(10);

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// A thread has one: alternate stack and handlers work on one stay at a time.
struct OnlyOne;

impl OnlyOne {
    fn take() -> Option<Self> {
        (!PREPARED.replace(true)).then_some(Self)
    }
}

impl Drop for OnlyOne {
    fn drop(&mut self) {
        PREPARED.set(false);
    }
}

/// A thread that has all it needs, and is not isolated yet.
pub struct Prepared {
    cpu: usize,
    config: Config,
    shared: Arc<Shared>,
    _only: OnlyOne,
    shortcomings: Vec<Refusal>,
    _kept: Vec<KeptFromChildren>,
    _alternate: AlternateStack,
    /// Signals, events and stacks are the thread's own.
    _not_send: PhantomData<*const ()>,
}

/// Prepares the calling thread, which is pinned to `cpu`, and locks the process's memory as it is now.
pub fn prepare(cpu: usize, config: &Config) -> Result<Prepared, Refusal> {
    let mut shortcomings = Vec::new();
    let mut lacks = |refusal: Refusal| match config.strictness {
        Strictness::Soft if refusal.is_soft() => {
            shortcomings.push(refusal);
            Ok(())
        }
        _ => Err(refusal),
    };
    let only = OnlyOne::take().ok_or(Refusal::Nested)?;
    check_pinned(cpu)?;
    let kernel = KernelIsolation::read();
    if !kernel.nohz_full.contains(cpu) {
        let none = kernel.nohz_full.is_empty();
        let nohz_full = if none { "none".to_owned() } else { kernel.nohz_full.to_string() };
        lacks(Refusal::Ticks { cpu, nohz_full })?;
    }
    let mut signals = config.signals;
    let traps = loop {
        match Traps::open(signals) {
            // What the kernel does not signal is left out, where that is all right: the rest is worth having.
            Err(error) if error.class() != Signals::NONE => {
                let class = error.class();
                lacks(error.into())?;
                signals = signals.without(class);
            }
            traps => break traps?,
        }
    };
    handler::install().map_err(Refusal::system("install signal handlers"))?;
    let alternate = AlternateStack::set().map_err(Refusal::system("set an alternate signal stack"))?;
    let stack = sys::stack().map_err(Refusal::system("find the thread's stack"))?;
    let stack = memory::mapped_end(&stack).map_err(Refusal::system("read /proc/self/maps"))?;
    // Handlers ask which CPU they are on.
    percpu::rseq::attach();
    let wishes = Wishes {
        one_shot: config.mode == Mode::OneShot,
        allow_syscalls: config.allow_syscalls,
        allow_exceptions: config.allow_exceptions,
        abort: config.abort,
    };
    let tid = nix::unistd::gettid().as_raw();
    let shared = Arc::new(Shared::new(wishes, stack.clone(), alternate.pages(), tid, cpu as u32, traps));
    let mut kept = Vec::new();
    if config.keep_from_children {
        let own = ptr::from_ref(&*shared) as u64;
        let own = own..own + size_of::<Shared>() as u64;
        // Where the kernel refuses, a fork elsewhere costs a few faults, which are signalled.
        for range in [sys::below_thread_block(&stack), alternate.pages(), own, shared.ring.pages()] {
            kept.extend(KeptFromChildren::new(&range));
        }
    }
    let locked = memory::lock_process().map_err(Refusal::system("read /proc/self/maps"))?;
    if locked.present_bytes > 0 {
        let source = io::Error::from_raw_os_error(locked.errno);
        lacks(Refusal::Memory { bytes: locked.present_bytes, source })?;
    }
    Ok(Prepared {
        cpu,
        config: Config { signals, ..*config },
        shared,
        _only: only,
        shortcomings,
        _kept: kept,
        _alternate: alternate,
        _not_send: PhantomData,
    })
}

fn check_pinned(cpu: usize) -> Result<(), Refusal> {
    let mask = Topology::read().map_err(Refusal::system("read the affinity mask"))?.allowed;
    if mask == CpuList::from_iter([cpu]) { Ok(()) } else { Err(Refusal::NotPinned { cpu, mask }) }
}

impl Prepared {
    /// What another thread looks at: counts, records, and the means to suspend the stay.
    pub fn watched(&self) -> Watched {
        Watched::new(Arc::clone(&self.shared), self.cpu)
    }

    /// What this machine does not give; soft isolation only.
    pub fn shortcomings(&self) -> &[Refusal] {
        &self.shortcomings
    }

    /// Whether the kernel can stop its tick here.
    pub fn is_tickless(&self) -> bool {
        !self
            .shortcomings
            .iter()
            .any(|lack| matches!(lack, Refusal::Ticks { .. } | Refusal::StillTicks { .. }))
    }

    /// Isolates the thread. From here on each kernel entry of a class that was asked for is signalled.
    pub fn enter(mut self) -> Result<Isolated, Refusal> {
        let mark = percpu::mark_isolated(self.cpu);
        let mask_before = block_signals().map_err(Refusal::system("block signals"))?;
        let mut isolated = Isolated { mask_before, _mark: mark, armed: false, prepared: None };
        quiet::let_deferred_work_run();
        if self.is_tickless() {
            let quiet = quiet::wait_for_quiet(self.cpu, self.config.quiesce_limit)
                .map_err(Refusal::system("read /proc/interrupts"))?;
            if let Err(restless) = quiet {
                let refusal = Refusal::StillTicks {
                    cpu: self.cpu,
                    waited_ms: restless.waited.as_millis() as u64,
                    interrupts: restless.interrupts,
                    window_ms: restless.window.as_millis() as u64,
                };
                match self.config.strictness {
                    Strictness::Strict => return Err(refusal),
                    Strictness::Soft => self.shortcomings.push(refusal),
                }
            }
        }
        isolated.prepared = Some(self);
        isolated.arm()?;
        Ok(isolated)
    }
}

/// Blocks all signals but ours and those by which the CPU reports a broken program; gives the mask there was.
fn block_signals() -> io::Result<SigSet> {
    let mut mask = SigSet::all();
    let kept =
        [Signal::SIGSYS, Signal::SIGTRAP, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL];
    kept.into_iter().chain([Signal::SIGABRT]).for_each(|signal| mask.remove(signal));
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), Some(&mut before))?;
    Ok(before)
}

/// What a thread learns at a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing has happened.
    Undisturbed,
    /// The kernel was entered by an allowed way. The stay goes on.
    Entered,
    /// The kernel was entered, and that was signalled. The stay goes on.
    Disturbed,
    /// The stay has ended, by this. [`Isolated::enter_again`] begins another.
    Ended(Source),
}

/// A thread's stay in isolation, which ends when this is dropped.
pub struct Isolated {
    /// Always there but while `enter` is under way.
    prepared: Option<Prepared>,
    mask_before: SigSet,
    armed: bool,
    _mark: Option<IsolatedMark>,
}

impl Isolated {
    fn shared(&self) -> Option<&Shared> {
        self.prepared.as_ref().map(|prepared| &*prepared.shared)
    }

    fn arm(&mut self) -> Result<(), Refusal> {
        let Some(prepared) = &self.prepared else { return Ok(()) };
        let shared = &*prepared.shared;
        shared.ended_by.store(0, Ordering::Relaxed);
        shared.attention.store(0, Ordering::Relaxed);
        // SAFETY: `prepared` keeps it alive; `disarm` takes it away before that ends.
        unsafe { handler::set_current(Some(shared)) };
        self.armed = true;
        shared.begin();
        shared.arm(true).map_err(Refusal::system("switch perf events on"))?;
        if prepared.config.signals.contains(Signals::SYSCALLS) {
            let selector = shared.gate.selector.as_ptr();
            // SAFETY: the selector lives as long as `prepared`, and `disarm` stops the dispatch before that ends; where the guard is
            // forgotten, both stay for ever. The handler is installed.
            unsafe { sys::start_dispatch(handler::allowed_range(), selector) }.map_err(Refusal::Dispatch)?;
            shared.shut_gate();
        }
        Ok(())
    }

    fn disarm(&mut self) {
        if !std::mem::take(&mut self.armed) {
            return;
        }
        let Some(prepared) = &self.prepared else { return };
        prepared.shared.close();
        prepared.shared.open_for_good();
        if prepared.config.signals.contains(Signals::SYSCALLS) {
            sys::stop_dispatch();
        }
        // Fails only for a descriptor that is none.
        let _ = prepared.shared.arm(false);
        prepared.shared.count_merged_faults();
        // SAFETY: nothing is kept.
        unsafe { handler::set_current(None) };
    }

    /// Once a turn of the thread's loop: one load while nothing has happened.
    #[inline(always)]
    pub fn turn(&mut self) -> Turn {
        match self.shared() {
            Some(shared) if shared.attention.load(Ordering::Relaxed) != 0 => self.attend(),
            _ => Turn::Undisturbed,
        }
    }

    #[cold]
    fn attend(&mut self) -> Turn {
        let Some(prepared) = &self.prepared else { return Turn::Undisturbed };
        let shared = &*prepared.shared;
        let bits = shared.attention.swap(0, Ordering::Relaxed);
        if bits & attention::ENDED != 0 {
            let source = shared.ended_by().unwrap_or(Source::Syscall);
            self.disarm();
            return Turn::Ended(source);
        }
        if bits & attention::SHUT_GATE != 0 {
            let rest = shared.gate.rest.load(Ordering::Relaxed);
            shared.gate.selector.store(rest, Ordering::Relaxed);
        }
        let allowed = bits & attention::ENTERED != 0;
        if allowed || bits & self.unquiet() != 0 && prepared.config.quiesce {
            self.quiesce();
        }
        match bits & (attention::VIOLATED | attention::ENTERED) {
            0 => Turn::Undisturbed,
            attention::ENTERED => Turn::Entered,
            _ => Turn::Disturbed,
        }
    }

    /// What there is to wait for the end of: on a CPU that ticks, nobody waits for quiet from interrupts.
    fn unquiet(&self) -> u32 {
        let ticks = !self.prepared.as_ref().is_some_and(Prepared::is_tickless);
        if ticks { attention::OWN | attention::ENTERED } else { attention::VIOLATED | attention::ENTERED }
    }

    /// Waits until no signal has come for a while; bounded. It makes no system call: the handlers tell.
    fn quiesce(&self) {
        let Some(prepared) = &self.prepared else { return };
        let limit = tsc::from_ns(prepared.config.quiesce_limit.as_nanos() as u64);
        let quiet = tsc::from_ns(QUIET.as_nanos() as u64);
        let start = tsc::now();
        let (mut last, mut seen) = (start, prepared.shared.attention.load(Ordering::Relaxed));
        loop {
            let now = tsc::now();
            let bits = prepared.shared.attention.swap(0, Ordering::Relaxed);
            seen |= bits;
            if bits & self.unquiet() != 0 {
                last = now;
            }
            if now.wrapping_sub(last) > quiet
                || now.wrapping_sub(start) > limit
                || seen & attention::ENDED != 0
            {
                break;
            }
            std::hint::spin_loop();
        }
        // Whatever ended the stay meanwhile is for the next turn.
        prepared.shared.raise(seen & (attention::ENDED | attention::SHUT_GATE));
    }

    /// Runs `f` with system calls let through: a deliberate one, uncounted. Costs two stores.
    #[inline(always)]
    pub fn allow<R>(&self, f: impl FnOnce() -> R) -> R {
        let Some(shared) = self.shared() else { return f() };
        let _open = Opening::new(shared);
        f()
    }

    /// The same window for code that has no access to the guard.
    pub fn window(&self) -> Option<Window> {
        self.prepared.as_ref().map(|prepared| Window(Arc::clone(&prepared.shared)))
    }

    /// Begins another stay after the last has ended. Fails where the thread is not on its CPU any more.
    pub fn enter_again(&mut self) -> Result<(), Refusal> {
        self.disarm();
        if let Some(prepared) = &self.prepared {
            check_pinned(prepared.cpu)?;
        }
        self.arm()
    }

    /// Whether the stay goes on.
    pub fn is_isolated(&self) -> bool {
        self.armed && self.shared().is_some_and(|shared| !shared.has_ended())
    }

    /// What another thread looks at.
    pub fn watched(&self) -> Option<Watched> {
        self.prepared.as_ref().map(Prepared::watched)
    }

    /// What this machine does not give; soft isolation only.
    pub fn shortcomings(&self) -> &[Refusal] {
        self.prepared.as_ref().map_or(&[], Prepared::shortcomings)
    }
}

/// A window for deliberate system calls: [`Isolated::allow`], to be given to what makes them. It is for the isolated thread; on
/// another it would let that one's calls through.
#[derive(Clone)]
pub struct Window(Arc<Shared>);

impl Window {
    /// Runs `f` with system calls let through.
    #[inline(always)]
    pub fn allow<R>(&self, f: impl FnOnce() -> R) -> R {
        let _open = Opening::new(&self.0);
        f()
    }
}

/// The gate, open for a while.
struct Opening<'a> {
    shared: &'a Shared,
    before: u8,
}

impl<'a> Opening<'a> {
    #[inline(always)]
    fn new(shared: &'a Shared) -> Self {
        let before = shared.gate.selector.load(Ordering::Relaxed);
        shared.gate.selector.store(OPEN, Ordering::Relaxed);
        // The compiler must not move the caller's system calls out of the window.
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        Self { shared, before }
    }
}

impl Drop for Opening<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        if self.before == SHUT {
            // Not what it was but what it shall be: the stay may have ended in between.
            let rest = self.shared.gate.rest.load(Ordering::Relaxed);
            self.shared.gate.selector.store(rest, Ordering::Relaxed);
        }
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.disarm();
        // It was the thread's own mask.
        let _ = self.mask_before.thread_set_mask();
    }
}
