//! The same with a real kernel: run in a guest by bench/tests/nics/binding.rs, on devices that the environment names.

use super::super::bind::{Binding, Wishes, bind};
use super::super::sysfs::{PciDevice, until};
use std::io::Write;
use std::time::Duration;

/// Addresses, with commas.
const DEVICES: &str = "ISOPLANE_PCI_DEVICES";
const ROUNDS: usize = 20;

fn devices() -> Vec<PciDevice> {
    let text = std::env::var(DEVICES).unwrap_or_else(|_| panic!("{DEVICES}: addresses, with commas"));
    text.split(',').map(|address| PciDevice::find(address.parse().unwrap()).unwrap()).collect()
}

/// Binds it; in a guest nobody minds what it was used for.
fn taken(device: &PciDevice) -> Binding {
    bind(device, Wishes { take: true, no_iommu: false }).unwrap_or_else(|error| panic!("{error}"))
}

type Before = (Option<String>, Option<String>, Vec<String>);

fn state(device: &PciDevice) -> Before {
    let names = device.interfaces().into_iter().map(|interface| interface.name);
    (device.driver(), device.driver_override(), names.collect())
}

#[test]
#[ignore = "takes devices from their drivers: in a guest"]
fn devices_are_taken_and_given_back_again_and_again() {
    let devices = devices();
    let before: Vec<Before> = devices.iter().map(state).collect();
    for _ in 0..ROUNDS {
        let bindings: Vec<Binding> = devices.iter().map(taken).collect();
        for (device, binding) in devices.iter().zip(&bindings) {
            assert_eq!(device.driver().as_deref(), Some("vfio-pci"));
            binding.open_group().unwrap();
        }
        drop(bindings);
        for (device, before) in devices.iter().zip(&before) {
            // The interface is renamed back by nobody, and may come a moment later than its driver.
            let back = until(Duration::from_secs(5), || state(device).2.len() == before.2.len());
            let now = state(device);
            assert!(back && (&now.0, &now.1) == (&before.0, &before.1), "{before:?}, then {now:?}");
        }
    }
    assert!(!std::path::Path::new("/run/isoplane").exists());
    println!("{} devices, {ROUNDS} times: {before:?}", devices.len());
}

#[test]
#[ignore = "needs devices that a killed process has left: in a guest"]
fn devices_are_taken_over_from_the_dead() {
    for device in devices() {
        assert_eq!(device.driver().as_deref(), Some("vfio-pci"));
        taken(&device).open_group().unwrap();
        assert_ne!(device.driver().as_deref(), Some("vfio-pci"));
    }
}

#[test]
#[ignore = "waits to be killed: in a guest"]
fn devices_are_taken_and_kept_open() {
    let bindings: Vec<Binding> = devices().iter().map(taken).collect();
    let groups: Vec<_> = bindings.iter().map(|binding| binding.open_group().unwrap()).collect();
    println!("taken");
    std::io::stdout().flush().unwrap();
    std::thread::sleep(Duration::from_secs(60));
    drop(groups);
}

#[test]
#[ignore = "needs a device that cannot be taken: in a guest"]
fn a_device_that_cannot_be_taken_says_why() {
    for device in devices() {
        let before = state(&device);
        let error = match bind(&device, Wishes::default()) {
            Err(error) => error,
            // Bound by hand: nothing is remembered of it, and the group says it.
            Ok(binding) => binding.open_group().unwrap_err(),
        };
        println!("{error}");
        assert_eq!(state(&device), before);
    }
}
