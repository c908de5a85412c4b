//! A storm of page faults beside interrupts: signals of faults that come while another is on its way are one with it, and yet none of them is lost
//! from the count. It needs root: the names begin with `namespace_`.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::{isolated, soft};
use isolation::{Signals, Source};
use std::time::{Duration, Instant};

const TEST: &str = "namespace_no_page_fault_is_lost_beside_interrupts";
const PAGES: usize = 16;
const PAGE: usize = 4096;

#[test]
fn namespace_no_page_fault_is_lost_beside_interrupts() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED {TEST}: needs root to signal interrupts");
    }
    let mut memory = vec![0_u8; (PAGES + 1) * PAGE];
    let first = (memory.as_mut_ptr() as usize).next_multiple_of(PAGE);
    let (mut faults, mut watched) = (0_u64, None);
    isolated(&soft(Signals::EXCEPTIONS.with(Signals::INTERRUPTS)), |guard| {
        watched = guard.watched();
        let pages = first as *mut u8;
        // SAFETY: these pages are inside `memory`, whose content nobody needs.
        unsafe { libc::munlock(pages.cast(), PAGES * PAGE) };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            // SAFETY: as above.
            unsafe { libc::madvise(pages.cast(), PAGES * PAGE, libc::MADV_DONTNEED) };
            // SAFETY: as above.
            (0..PAGES).for_each(|page| unsafe { pages.add(page * PAGE).write_volatile(1) });
            faults += PAGES as u64;
        }
    });
    // The stay is over.
    let (counted, skipped) =
        watched.map(|watched| (watched.count(Source::PageFault), watched.skipped())).unwrap();
    eprintln!("{faults} faults, {counted} counted, {skipped} not recorded");
    assert!(faults > 10_000, "{faults}");
    assert_eq!(counted, faults);
    drop(memory);
}
