//! Every system call that VFIO and iommufd need, one thin function each.
#![allow(unsafe_code)]

use super::abi::{self, Argument, IoasIovaRanges, IrqSet};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// What an information structure with its capabilities may have at most, in bytes; the kernel's are below 1 KiB.
const MAX_INFO_BYTES: usize = 64 << 10;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `ioctl(2)` with a number, or none where it is 0.
pub(super) fn call_number(fd: BorrowedFd<'_>, request: u32, number: u32) -> io::Result<i32> {
    // SAFETY: these requests take their third argument as a number; no memory is passed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, libc::c_ulong::from(number)) })
}

/// `ioctl(2)` with a structure, whose size is filled in here.
pub(super) fn call<T: Argument>(fd: BorrowedFd<'_>, request: u32, argument: &mut T) -> io::Result<i32> {
    let argument = ptr::from_mut(argument);
    // SAFETY: the trait's promise: the first field is a u32. The kernel reads and writes as many bytes as that says, and any bits are a value.
    unsafe {
        argument.cast::<u32>().write(size_of::<T>() as u32);
        check(libc::ioctl(fd.as_raw_fd(), request as _, argument))
    }
}

/// The same for a structure that capabilities may follow: the structure, and all the bytes that the kernel wrote, itself included.
pub(super) fn call_with_capabilities<T: Argument>(
    fd: BorrowedFd<'_>,
    request: u32,
    argument: T,
) -> io::Result<(T, Vec<u8>)> {
    let mut bytes = size_of::<T>();
    loop {
        let mut words = vec![0_u64; bytes.div_ceil(8)];
        let place = words.as_mut_ptr();
        // SAFETY: the words are room for a T, aligned for any field, and for `bytes` bytes, which the first field says; the trait's promises for the rest.
        let (answer, wanted) = unsafe {
            place.cast::<T>().write(argument);
            place.cast::<u32>().write(bytes as u32);
            check(libc::ioctl(fd.as_raw_fd(), request as _, place))?;
            (place.cast::<T>().read(), place.cast::<u32>().read() as usize)
        };
        if wanted <= bytes || wanted > MAX_INFO_BYTES {
            let written = words.iter().flat_map(|word| word.to_ne_bytes()).take(bytes).collect();
            return Ok((answer, written));
        }
        bytes = wanted;
    }
}

/// `VFIO_GROUP_SET_CONTAINER`.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let fd: RawFd = container.as_raw_fd();
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(group.as_raw_fd(), abi::GROUP_SET_CONTAINER as _, &raw const fd) })?;
    Ok(())
}

/// `VFIO_GROUP_GET_DEVICE_FD`.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends with a NUL.
    let fd = check(unsafe { libc::ioctl(group.as_raw_fd(), abi::GROUP_GET_DEVICE_FD as _, name.as_ptr()) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `VFIO_DEVICE_SET_IRQS` with an eventfd for each interrupt from `start` on; with none, the index's interrupts end.
pub(super) fn set_irqs(device: BorrowedFd<'_>, index: u32, eventfds: &[OwnedFd]) -> io::Result<()> {
    let flags = if eventfds.is_empty() { abi::IRQ_TRIGGER_NONE } else { abi::IRQ_TRIGGER_EVENTFD };
    let bytes = size_of::<IrqSet>() + size_of_val(eventfds);
    let header = IrqSet { argsz: bytes as u32, flags, index, start: 0, count: eventfds.len() as u32 };
    let mut words = vec![header.argsz, header.flags, header.index, header.start, header.count];
    words.extend(eventfds.iter().map(|fd| fd.as_raw_fd().cast_unsigned()));
    // SAFETY: a struct vfio_irq_set of five u32 with as many descriptors behind it as it says, which the kernel reads.
    check(unsafe { libc::ioctl(device.as_raw_fd(), abi::DEVICE_SET_IRQS as _, words.as_ptr()) })?;
    Ok(())
}

/// `IOMMU_IOAS_IOVA_RANGES`: start and last address of each.
pub(super) fn iova_ranges(iommufd: BorrowedFd<'_>, ioas_id: u32) -> io::Result<Vec<(u64, u64)>> {
    // Enough for all that is known; the kernel says where it is not.
    let mut room = 64_usize;
    loop {
        let mut pairs = vec![[0_u64; 2]; room];
        let mut argument = IoasIovaRanges {
            size: size_of::<IoasIovaRanges>() as u32,
            ioas_id,
            num_iovas: room as u32,
            allowed_iovas: pairs.as_mut_ptr() as u64,
            ..IoasIovaRanges::default()
        };
        // SAFETY: the kernel reads and writes the structure and at most `room` pairs of u64 where it points, which is what is there.
        let result =
            check(unsafe { libc::ioctl(iommufd.as_raw_fd(), abi::IOAS_IOVA_RANGES as _, &raw mut argument) });
        let count = argument.num_iovas as usize;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) && (room..=4096).contains(&count) => {
                room = count;
            }
            Err(error) => return Err(error),
            Ok(_) => return Ok(pairs.into_iter().take(count).map(|[start, last]| (start, last)).collect()),
        }
    }
}

/// `eventfd(2)`, which never blocks.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes what an eventfd has counted, 0 where that is nothing.
pub(super) fn take_events(eventfd: BorrowedFd<'_>) -> u64 {
    let mut count = 0_u64;
    // SAFETY: eight writable bytes, any of which are a number.
    let read = unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    if read == size_of::<u64>() as isize { count } else { 0 }
}

/// `dup3(2)`: closes what `fd` was, and lets it be the same as `other`.
pub(super) fn replace_fd(fd: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor stays open, as its owner expects; no memory is passed.
    check(unsafe { libc::dup3(other.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) })?;
    Ok(())
}

/// `pread(2)` of a number of `T`'s size; `None` where the kernel does not give all of it.
pub(super) fn read_at<T: Number>(fd: BorrowedFd<'_>, offset: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: as many writable bytes as a T has.
    let read = unsafe {
        libc::pread(fd.as_raw_fd(), value.as_mut_ptr().cast(), size_of::<T>(), offset.cast_signed())
    };
    // SAFETY: all bytes were written, and any bits are a number.
    (read == size_of::<T>() as isize).then(|| unsafe { value.assume_init() })
}

/// `pwrite(2)` of a number; false where the kernel does not take all of it.
pub(super) fn write_at<T: Number>(fd: BorrowedFd<'_>, offset: u64, value: T) -> bool {
    // SAFETY: as many readable bytes as a T has, without padding.
    let written = unsafe {
        libc::pwrite(fd.as_raw_fd(), (&raw const value).cast(), size_of::<T>(), offset.cast_signed())
    };
    written == size_of::<T>() as isize
}

/// An integer.
///
/// # Safety
/// Any bits are a value, and there is no padding.
pub(super) unsafe trait Number: Copy {}
// SAFETY: an integer.
unsafe impl Number for u8 {}
// SAFETY: an integer.
unsafe impl Number for u16 {}
// SAFETY: an integer.
unsafe impl Number for u32 {}
// SAFETY: an integer.
unsafe impl Number for u64 {}
