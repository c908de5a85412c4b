//! Tests on a device that is there, bound to vfio-pci: in a guest, by hand or by its test. Two igb (82576) at the addresses that the environment names.
#![forbid(unsafe_code)]

use super::device::{Trouble, VfioFunction};
use super::dma::DmaSpace;
use super::error::VfioError;
use super::function::PciFunction;
use super::open;
use super::options::IommuChoice;
use super::pci::bind::{self, Wishes};
use super::pci::sysfs::Sysfs;
use super::sys;
use crate::memory::{PageChoice, Pool, PoolConfig};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ADDRESSES: &str = "ISOPLANE_VFIO_IGB";

fn addresses() -> Vec<String> {
    let text =
        std::env::var(ADDRESSES).unwrap_or_else(|_| panic!("{ADDRESSES}: two addresses, with a comma"));
    text.split(',').map(str::to_owned).collect()
}

fn open(address: &str) -> Result<Arc<VfioFunction>, VfioError> {
    let device = Sysfs::default().device(address.parse().unwrap());
    let binding = bind::check(&device, Wishes::default())?;
    Ok(open::function(binding, IommuChoice::Auto)?.0)
}

fn locked_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits, not for ever.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// 82576 data sheet, 8.2.2, 8.8, 8.12.
const STATUS: usize = 0x0008;
const EICS: usize = 0x1520;
const EIMS: usize = 0x1524;
const GPIE: usize = 0x1514;
const TDBAL0: usize = 0xE000;

#[test]
#[ignore = "needs two igb bound to vfio-pci: a guest's"]
fn hardware_is_opened_mapped_reset_and_closed() {
    let [first, second] = &addresses()[..] else { panic!("{ADDRESSES}: two addresses") };
    let before = locked_kib();
    let function = open(first).unwrap();
    assert_eq!((function.id().vendor, function.id().device), (0x8086, 0x10C9));
    let registers = function.bar(0).unwrap();
    let status = registers.read32(STATUS);
    println!("BAR 0 has {:#x} bytes, STATUS is {status:#010x}", registers.length());
    assert!(registers.length() >= 0x20000 && status != u32::MAX && status != 0);
    assert_eq!(registers.read32(registers.length()), u32::MAX);
    // The I/O BAR, and none.
    assert!(function.bar(2).is_err() && function.bar(6).is_err());
    // What is written is there, and is gone with a reset.
    registers.write32(TDBAL0, 0x1234_5680);
    assert_eq!(registers.read32(TDBAL0), 0x1234_5680);
    assert!(function.reset().unwrap(), "igb has FLR");
    assert_eq!(registers.read32(TDBAL0), 0);

    // Packet memory and rings, for both devices.
    let config = PoolConfig { frames: 1024, pages: PageChoice::Auto, ..PoolConfig::default() };
    let pool = Pool::new(&config).unwrap();
    let frames = function.dma().map_pool(&pool).unwrap();
    let ring = function.dma().allocate(8192).unwrap();
    println!(
        "{} KiB locked, {:?} pages, IOVA {:#x} of a ring",
        locked_kib() - before,
        pool.page(),
        ring.iova()
    );
    assert!(locked_kib() >= before + 2048);
    let other = open(second).unwrap();
    assert!(Arc::ptr_eq(other.dma(), function.dma()), "one space for all");
    assert!(Arc::ptr_eq(&other.dma().map_pool(&pool).unwrap(), &frames));

    // The first closed, the second still reaches the memory; the first can be had again.
    let space: Arc<DmaSpace> = Arc::clone(function.dma());
    drop((registers, function));
    let again = open(first).unwrap();
    assert!(Arc::ptr_eq(again.dma(), &space));
    drop((again, other));
    drop((frames, ring, space));
    assert_eq!((locked_kib(), pool.audit().held), (before, 0));
    // And from the start, with nothing left of the first time.
    let function = open(first).unwrap();
    let ring = function.dma().allocate(4096).unwrap();
    drop(function);
    // Its group is closed, and with it all is unmapped: a space that outlives its devices is not used again.
    let function = open(first).unwrap();
    assert!(function.dma().map_pool(&pool).is_ok());
    drop((ring, function));
    assert_eq!(locked_kib(), before);
}

#[test]
#[ignore = "needs two igb bound to vfio-pci: a guest's"]
fn hardware_interrupts_by_msix() {
    let function = open(&addresses()[0]).unwrap();
    let registers = function.bar(0).unwrap();
    println!("{} MSI-X vectors", function.msix_vectors());
    // An interrupt is a write to memory.
    function.set_bus_master(true);
    assert!(function.enable_msix(function.msix_vectors() + 1).is_err());
    for count in [1, 3] {
        let events = function.enable_msix(count).unwrap();
        assert_eq!(events.len(), usize::from(count));
        assert!(events.iter().all(|event| sys::take_events(event.as_fd()) == 0));
        // Several vectors (GPIE.Multiple_MSIX), the last of them enabled and caused.
        registers.write32(GPIE, 0x8000_0010);
        let last = 1 << (count - 1);
        registers.write32(EIMS, last);
        registers.write32(EICS, last);
        until("the interrupt", || sys::take_events(events[usize::from(count) - 1].as_fd()) > 0);
        assert!(events.iter().all(|event| sys::take_events(event.as_fd()) == 0));
    }
}

#[test]
#[ignore = "needs two igb bound to vfio-pci: a guest's"]
fn hardware_that_the_kernel_wants_back_is_given() {
    let address = &addresses()[1];
    let function = open(address).unwrap();
    assert!(!function.is_going());
    let driver = Path::new("/sys/bus/pci/drivers/vfio-pci");
    std::thread::scope(|scope| {
        let unbind = scope.spawn(|| fs::write(driver.join("unbind"), address).unwrap());
        until("the request", || function.is_going());
        assert_eq!(function.trouble(), Some(Trouble::Requested));
        assert!(!unbind.is_finished(), "it waits for us");
        drop(function);
        until("the end of the unbinding", || unbind.is_finished());
    });
    // It is bound for us, and free again after.
    let bound = || driver.join(address).exists();
    assert!(!bound());
    let function = open(address).unwrap();
    assert!(bound());
    drop(function);
    assert!(!bound());
}
