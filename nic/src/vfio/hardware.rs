//! Tests on a device that is there: run in a guest by bench/tests/nics/binding.rs. Two igb (82576) at the addresses that the environment names.
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

/// As the environment says: `off` is without an IOMMU.
fn open(address: &str) -> Result<Arc<VfioFunction>, VfioError> {
    let choice = match std::env::var("ISOPLANE_VFIO_IOMMU").as_deref() {
        Ok("off") => IommuChoice::Off,
        Ok("iommufd") => IommuChoice::Iommufd,
        Ok("group") => IommuChoice::Group,
        _ => IommuChoice::Auto,
    };
    let device = Sysfs::default().device(address.parse().unwrap());
    let binding = bind::check(&device, Wishes { no_iommu: choice == IommuChoice::Off, take: false })?;
    let (function, words) = open::function(binding, choice)?;
    println!("{address}: {words}");
    Ok(function)
}

/// Counted as locked by VFIO, or as pinned by iommufd.
fn locked_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let lines = status.lines().filter(|line| line.starts_with("VmLck:") || line.starts_with("VmPin:"));
    lines.map(|line| line[6..].trim().trim_end_matches(" kB").parse::<u64>().unwrap()).sum()
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
#[ignore = "needs two igb: in a guest"]
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
#[ignore = "needs two igb: in a guest"]
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
#[ignore = "needs two igb: in a guest"]
fn hardware_that_the_kernel_wants_back_is_given() {
    let address = &addresses()[1];
    let function = open(address).unwrap();
    let registers = function.bar(0).unwrap();
    assert!(!function.is_going());
    let driver = Path::new("/sys/bus/pci/drivers/vfio-pci");
    std::thread::scope(|scope| {
        let unbind = scope.spawn(|| fs::write(driver.join("unbind"), address).unwrap());
        until("the request", || function.is_going());
        assert_eq!(function.trouble(), Some(Trouble::Requested));
        assert!(!unbind.is_finished(), "it waits for us");
        // Given back while its queues still have its registers.
        function.release();
        until("the end of the unbinding", || unbind.is_finished());
        registers.write32(TDBAL0, 5);
        assert_eq!((registers.read32(TDBAL0), function.read_config(0, 2)), (u32::MAX, 0xFFFF));
        drop((registers, function));
    });
    // It is bound for us, and free again after.
    let bound = || driver.join(address).exists();
    assert!(!bound());
    let function = open(address).unwrap();
    assert!(bound());
    drop(function);
    assert!(!bound());
}

/// PCI 3.0, 6.2.2: Memory Space.
const MEMORY_SPACE: u32 = 1 << 1;

#[test]
#[ignore = "needs two igb: in a guest"]
fn hardware_without_its_memory_space_is_silent_and_the_process_lives() {
    let function = open(&addresses()[0]).unwrap();
    let registers = function.bar(0).unwrap();
    assert_ne!(registers.read32(STATUS), u32::MAX);
    let command = function.read_config(4, 2);
    function.write_config(4, 2, command & !MEMORY_SPACE);
    registers.write32(TDBAL0, 5);
    assert_eq!((registers.read32(TDBAL0), registers.read32(STATUS)), (u32::MAX, u32::MAX));
    assert_eq!(function.trouble(), Some(Trouble::Silent));
    drop((registers, function));
    // The next one starts anew.
    let function = open(&addresses()[0]).unwrap();
    assert_ne!(function.bar(0).unwrap().read32(STATUS), u32::MAX);
}

#[test]
#[ignore = "needs an igb and a limit, and ISOPLANE_VFIO_REFUSED=words: in a guest"]
fn refused_hardware_says_why() {
    let Ok(words) = std::env::var("ISOPLANE_VFIO_REFUSED") else { return };
    let pool = Pool::new(&PoolConfig { frames: 8192, ..PoolConfig::default() }).unwrap();
    let result = open(&addresses()[0]).map_err(|error| error.to_string());
    let result = result.and_then(|function| {
        let mapped = function.dma().map_pool(&pool).map(|_| ());
        mapped.map_err(|error| error.to_string())
    });
    let error = result.unwrap_err();
    println!("{error}");
    assert!(error.contains(&words) && !error.contains('\n'), "{error}");
}
