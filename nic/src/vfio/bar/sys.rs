//! Mapped registers, and what happens when the kernel takes them away.
//!
//! The kernel answers an access to a mapped BAR by SIGBUS once the device's memory space is off or it has lost its power (`vfio_pci_core`, the fault handler
//! of its mappings): mostly when it was pulled out, and before the kernel has asked us for it. The process must not die of that. A handler puts a
//! page of ones in the place of the one that is gone, by one mmap(2), and the access is made again: it reads what a device that is gone
//! answers. Every other SIGBUS goes to whoever handled it before.
#![allow(unsafe_code)]

use crate::sys::{allocate_file, memfd_create};
use crate::vfio::sys::write_at;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

const PAGE: usize = 4096;

/// Where a mapping is; the handler looks through all of them, so they are in no list that could move.
struct Place {
    start: AtomicUsize,
    /// 0 where the place is free.
    end: AtomicUsize,
    lost: AtomicBool,
}

static PLACES: [Place; 256] =
    [const { Place { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        256];
/// Whoever changes the places holds it; the handler only reads them.
static CHANGING: Mutex<()> = Mutex::new(());
/// A file of one page of ones.
static ONES: AtomicI32 = AtomicI32::new(-1);

/// A mapping of registers.
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    place: &'static Place,
}

// SAFETY: an address range that no thread in particular has. Registers are read and written by single volatile accesses, and no reference to them is
// ever made.
unsafe impl Send for Mapping {}
// SAFETY: as above: what several threads do at once is for the device to put in order.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `mmap(2)`: shared, readable and writable; `length` is rounded up to pages.
    pub(super) fn new(fd: BorrowedFd<'_>, length: usize, offset: u64) -> io::Result<Self> {
        install()?;
        let length = length.next_multiple_of(PAGE);
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        let place = PLACES.iter().find(|place| place.end.load(Ordering::Relaxed) == 0);
        let place = place.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        // SAFETY: without MAP_FIXED it overlays nothing that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset.cast_signed(),
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        place.lost.store(false, Ordering::Relaxed);
        place.start.store(address as usize, Ordering::Relaxed);
        place.end.store(address as usize + length, Ordering::Release);
        Ok(Self { base, length, place })
    }

    /// The first byte; valid as long as this lives.
    #[inline(always)]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Puts memory in the place of all registers, by which the device is no longer kept open. What is read there is to be asked after by
    /// [`is_lost`](Self::is_lost).
    pub(super) fn detach(&self) -> bool {
        // First, so that whoever reads that memory is told.
        self.place.lost.store(true, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let address: *mut libc::c_void = self.base.as_ptr().cast();
        // SAFETY: a mapping that is ours alone, and of which no reference is ever made; it stays one, of the same length.
        let result =
            unsafe { libc::mmap(address, self.length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        result != libc::MAP_FAILED
    }

    /// True once the registers are gone: what was read before this is no longer the device's.
    #[inline(always)]
    pub(super) fn is_lost(&self) -> bool {
        // Behind the read; of no cost on x86, where loads are in order.
        fence(Ordering::Acquire);
        self.place.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        // First: where the next mapping of anybody is put is no business of the handler's.
        self.place.end.store(0, Ordering::Release);
        // SAFETY: base and length are those of `new`; addresses inside were used through self alone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// What handled SIGBUS before.
struct Before(libc::sigaction);

// SAFETY: addresses of functions and numbers; the address of a function is good in every thread.
unsafe impl Sync for Before {}
// SAFETY: as above.
unsafe impl Send for Before {}

static BEFORE: OnceLock<Before> = OnceLock::new();

/// Has SIGBUS handled here, once for the process.
fn install() -> io::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let ones = memfd_create(c"isoplane-gone", 0)?;
    allocate_file(ones.as_fd(), PAGE)?;
    let written = (0..PAGE as u64).step_by(8).all(|at| write_at(ones.as_fd(), at, u64::MAX));
    if !written {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the kernel fills all of the structure, which is plain numbers.
    let before = unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        before.assume_init()
    };
    // For the life of the process, as the handler is. Both are there before the handler is.
    ONES.store(ones.into_raw_fd(), Ordering::Release);
    BEFORE.get_or_init(|| Before(before));
    // SAFETY: zero is a value of the structure; the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t with SA_SIGINFO. A positive code is the kernel's own, and it gives the address of the access then.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0 && replace(address) {
        return;
    }
    let Some(Before(before)) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // As if we were not there: the access is made again, and what was sent comes again.
            // SAFETY: both calls may be made in a handler; `before` is what the kernel gave us.
            unsafe {
                libc::sigaction(libc::SIGBUS, before, ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        other if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with this flag the address is that of a function with these arguments.
            let other: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(other) };
            other(signal, info, context);
        }
        other => {
            // SAFETY: without it, of one with this argument.
            let other: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(other) };
            other(signal);
        }
    }
}

/// Puts a page of ones there, if it is in a mapping of ours. Called in a signal handler: loads, stores and one system call.
fn replace(address: usize) -> bool {
    let inside = |place: &&Place| {
        address < place.end.load(Ordering::Acquire) && address >= place.start.load(Ordering::Relaxed)
    };
    let Some(place) = PLACES.iter().find(inside) else { return false };
    let page = (address & !(PAGE - 1)) as *mut libc::c_void;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: errno is this thread's, and is put back.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: a page of a mapping that is ours alone, and of which no reference is ever made. Private: what is written to it goes nowhere else.
    let result = unsafe { libc::mmap(page, PAGE, protection, flags, ONES.load(Ordering::Acquire), 0) };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    place.lost.store(true, Ordering::Relaxed);
    result != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::sys::read_at;

    #[test]
    fn registers_that_are_taken_away_read_ones() {
        let file = memfd_create(c"registers", 0).unwrap();
        allocate_file(file.as_fd(), 4 * PAGE).unwrap();
        let mapping = Mapping::new(file.as_fd(), 3 * PAGE - 5, PAGE as u64).unwrap();
        let register = |offset: usize| mapping.base().as_ptr().wrapping_add(offset).cast::<u32>();
        // SAFETY: three pages are mapped, and these are multiples of four in them.
        let (read, write) = (
            |offset| unsafe { register(offset).read_volatile() },
            |offset, value| unsafe { register(offset).write_volatile(value) },
        );
        write(PAGE + 8, 7);
        assert_eq!((read(PAGE + 8), read_at::<u32>(file.as_fd(), 2 * PAGE as u64 + 8)), (7, Some(7)));
        assert!(!mapping.is_lost());
        // What is mapped behind the end of a file is answered by SIGBUS.
        nix::unistd::ftruncate(&file, 2 * PAGE as i64).unwrap();
        assert_eq!((read(0), mapping.is_lost()), (0, false));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!((read(PAGE + 8), read(2 * PAGE)), (u32::MAX, u32::MAX)));
            }
        });
        assert!(mapping.is_lost());
        // Writes go nowhere.
        write(2 * PAGE + 4, 1);
        assert_eq!(read_at::<u32>(file.as_fd(), 3 * PAGE as u64 + 4), None);
        drop(mapping);
        assert!(!replace(0x1000));
    }

    #[test]
    fn detached_registers_are_no_longer_the_file_s() {
        let file = memfd_create(c"registers", 0).unwrap();
        allocate_file(file.as_fd(), 2 * PAGE).unwrap();
        let mapping = Mapping::new(file.as_fd(), 2 * PAGE, 0).unwrap();
        assert!(mapping.detach() && mapping.is_lost());
        // By one call, so the kernel has one mapping where the registers were.
        let (start, end) = (mapping.base().as_ptr() as usize, mapping.base().as_ptr() as usize + 2 * PAGE);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let borders = maps.lines().filter_map(|line| line.split(['-', ' ']).next());
        let inside = borders
            .filter_map(|border| usize::from_str_radix(border, 16).ok())
            .filter(|border| (start + 1..end).contains(border));
        assert_eq!(inside.count(), 0, "{maps}");
        for page in 0..2 {
            let register = mapping.base().as_ptr().wrapping_add(page * PAGE).cast::<u32>();
            // SAFETY: two pages are mapped.
            unsafe {
                register.read_volatile();
                register.write_volatile(3);
            }
            assert_eq!(read_at::<u32>(file.as_fd(), (page * PAGE) as u64), Some(0));
        }
    }

    const ALONE: &str = "ISOPLANE_TEST_SIGBUS";

    /// In a process of its own, which dies of it.
    #[test]
    fn any_other_bus_error_ends_the_process_as_before() {
        if std::env::var_os(ALONE).is_some() {
            let file = memfd_create(c"registers", 0).unwrap();
            allocate_file(file.as_fd(), PAGE).unwrap();
            let _mapping = Mapping::new(file.as_fd(), PAGE, 0).unwrap();
            let other = crate::sys::map_shared(file.as_fd(), PAGE, 0).unwrap();
            nix::unistd::ftruncate(&file, 0).unwrap();
            // SAFETY: mapped; that it cannot be read is what this is about.
            println!("{}", unsafe { other.as_ptr().read_volatile() });
            return;
        }
        let test = "vfio::bar::sys::tests::any_other_bus_error_ends_the_process_as_before";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
        assert_eq!(signal, Some(libc::SIGBUS), "{child:?}");
    }
}
