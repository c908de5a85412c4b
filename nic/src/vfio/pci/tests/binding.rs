//! Whatever happens on the way, the device comes back to the driver it had.

use super::super::bind::{self, Binding, PutBack, RestoredDevice, Wishes, bind};
use super::super::errors::PciError;
use super::super::holders::Holder;
use super::super::machine::{Fault, Machine, NIC, NewDevice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const PLAIN: Wishes = Wishes { take: false, no_iommu: false };
const STATE: &str = "/run/isoplane/pci-0000:03:00.0.json";

fn bound(machine: &Machine) -> Binding {
    let binding = bind(&machine.nic(), PLAIN).unwrap();
    assert_eq!(machine.nic().driver().as_deref(), Some("vfio-pci"));
    assert_eq!(binding.group_path().unwrap(), "/dev/vfio/7");
    binding
}

fn restore(machine: &Machine) -> Vec<RestoredDevice> {
    bind::restore(&machine.sysfs())
}

/// It is about one device, which is now back.
#[track_caller]
fn restored(machine: &Machine) {
    let restored = restore(machine);
    let [RestoredDevice { outcome: Ok(PutBack::Back), driver, .. }] = &restored[..] else {
        panic!("{} devices", restored.len());
    };
    assert_eq!(driver.as_deref(), Some("igb"));
    assert!(restore(machine).is_empty());
}

#[test]
fn a_device_goes_to_vfio_and_back() {
    let machine = Machine::with_nic();
    // The folder is made with the first file, and goes with the last.
    std::fs::create_dir(machine.path("/run")).unwrap();
    std::fs::create_dir(machine.path("/dev")).unwrap();
    machine.remove("/dev");
    let before = machine.snapshot();
    for _ in 0..20 {
        let binding = bound(&machine);
        assert_eq!(machine.nic().driver_override().as_deref(), Some("vfio-pci"));
        assert!(machine.nic().interfaces().is_empty() && machine.path(STATE).exists());
        assert!(binding.open_group().is_ok() && binding.cdev_path().is_none() && !binding.is_no_iommu());
        drop(binding);
        assert_eq!(machine.snapshot(), before);
    }
    assert!(restore(&machine).is_empty());
}

#[test]
fn a_device_without_a_driver_is_left_without_one() {
    let machine = Machine::new();
    machine.add(&NewDevice { driver: None, interface: None, ..NIC });
    machine.file(&machine.nic().file("driver_override"), "pci-stub\n");
    drop(bound(&machine));
    assert_eq!(machine.nic().driver(), None);
    assert_eq!(machine.nic().driver_override().as_deref(), Some("pci-stub"));
    assert!(!machine.path(STATE).exists());
}

#[test]
fn a_device_that_was_on_vfio_stays_there() {
    let machine = Machine::new();
    machine.add(&NewDevice { driver: Some("vfio-pci"), ..NIC });
    machine.fault(Fault::None);
    drop(bind(&machine.nic(), PLAIN).unwrap());
    assert_eq!(machine.nic().driver().as_deref(), Some("vfio-pci"));
    assert!(machine.writes() == 0 && !machine.path("/run").exists());
}

#[test]
fn a_step_that_fails_leaves_all_as_it_was() {
    let machine = Machine::with_nic();
    std::fs::create_dir(machine.path("/run")).unwrap();
    let before = machine.snapshot();
    let mut failures = 0;
    for number in 1.. {
        machine.fault(Fault::Once(number));
        match bind(&machine.nic(), PLAIN) {
            // All steps went well: the fault is in the way back, which finds another way or leaves the file.
            Ok(mut binding) => {
                let undone = binding.undo();
                drop(binding);
                if machine.writes() < number {
                    break;
                }
                if undone.is_err() {
                    machine.fault(Fault::None);
                    restored(&machine);
                }
            }
            Err(error) => {
                assert!(matches!(error, PciError::Step { .. }), "{error}");
                assert!(error.to_string().contains("Input/output error"), "{error}");
            }
        }
        failures += 1;
        assert_eq!(machine.snapshot(), before, "write {number}");
    }
    assert!(failures >= 6, "only {failures} writes");
}

#[test]
fn a_process_killed_at_any_step_is_mended_by_restore_or_by_the_next_one() {
    for number in 1..=6 {
        for next in [false, true] {
            let machine = Machine::with_nic();
            std::fs::create_dir(machine.path("/run")).unwrap();
            let before = machine.snapshot();
            machine.fault(Fault::From(number));
            // Three to bind, three to give back.
            match bind(&machine.nic(), PLAIN) {
                Ok(mut binding) => assert!(number > 3 && binding.undo().is_err()),
                Err(PciError::NotPutBack { .. }) => assert!((2..=3).contains(&number)),
                // Nothing was changed.
                Err(error) => assert!(number == 1, "{error}"),
            }
            machine.fault(Fault::None);
            if number > 1 {
                assert!(machine.path(STATE).exists(), "write {number}");
                if next { drop(bound(&machine)) } else { restored(&machine) }
            }
            assert_eq!(machine.snapshot(), before, "write {number}, next {next}");
        }
    }
}

#[test]
fn a_killed_process_is_inherited_with_the_former_driver() {
    let machine = Machine::with_nic();
    bound(&machine).die();
    assert!(machine.path(STATE).exists());
    // Killed again, and again.
    bound(&machine).die();
    drop(bound(&machine));
    assert_eq!(machine.nic().driver().as_deref(), Some("igb"));
    assert!(!machine.path(STATE).exists());
}

#[test]
fn a_later_choice_of_somebody_else_counts() {
    let machine = Machine::with_nic();
    machine.driver("other");
    bound(&machine).die();
    let give = |driver: &str| {
        let nic = machine.nic();
        let limit = std::time::Duration::from_secs(5);
        let address = nic.address().to_string();
        nic.sysfs().write(&nic.file("driver_override"), driver, limit).unwrap();
        nic.sysfs().write(&nic.file("driver/unbind"), &address, limit).unwrap();
        nic.sysfs().write(&format!("/sys/bus/pci/drivers/{driver}/bind"), &address, limit).unwrap();
    };
    give("other");
    let restored = restore(&machine);
    assert!(
        matches!(&restored[..], [RestoredDevice { outcome: Ok(PutBack::Foreign(driver)), .. }] if driver == "other")
    );
    assert_eq!(machine.nic().driver().as_deref(), Some("other"));
    assert!(restore(&machine).is_empty());
    // The same where the next run finds a file that is older than that choice.
    bound(&machine).die();
    give("igb");
    drop(bound(&machine));
    assert_eq!(machine.nic().driver().as_deref(), Some("igb"));
}

#[test]
fn a_device_that_has_gone_or_is_another_is_left_alone() {
    let machine = Machine::with_nic();
    let binding = bound(&machine);
    machine.file(&machine.nic().file("device"), "0x1234\n");
    drop(binding);
    assert_eq!(machine.nic().driver().as_deref(), Some("vfio-pci"), "it is not ours any more");
    assert!(!machine.path(STATE).exists());

    let machine = Machine::with_nic();
    bound(&machine).die();
    machine.remove("/sys/bus/pci/devices/0000:03:00.0");
    assert!(matches!(&restore(&machine)[..], [RestoredDevice { outcome: Ok(PutBack::Gone), .. }]));
    assert!(!machine.path(STATE).exists());
}

#[test]
fn another_boot_has_put_everything_back() {
    let machine = Machine::with_nic();
    bound(&machine).die();
    machine.file("/proc/sys/kernel/random/boot_id", "boot two\n");
    machine.fault(Fault::None);
    assert!(matches!(&restore(&machine)[..], [RestoredDevice { outcome: Ok(PutBack::Back), .. }]));
    assert!(machine.writes() == 0 && !machine.path(STATE).exists());
}

#[test]
fn a_live_owner_is_named_and_left_alone() {
    let machine = Machine::with_nic();
    let binding = bound(&machine);
    let words = |error: PciError| {
        let text = error.to_string();
        assert!(
            text.ends_with("is in use by this process already: give each port a device of its own"),
            "{text}"
        );
    };
    words(bind(&machine.nic(), PLAIN).err().unwrap());
    let mut restored = restore(&machine);
    words(restored.remove(0).outcome.unwrap_err());
    assert_eq!(machine.nic().driver().as_deref(), Some("vfio-pci"));
    // The file names another process; the lock is what counts.
    let record = std::fs::read_to_string(machine.path(STATE)).unwrap();
    let own = format!("\"process\": {}", std::process::id());
    std::fs::write(machine.path(STATE), record.replace(&own, "\"process\": 4711")).unwrap();
    machine.process(4711, 'S', 0);
    let text = bind(&machine.nic(), PLAIN).err().unwrap().to_string();
    assert!(text.contains("is in use by process 4711 (l2fwd): end it"), "{text}");
    drop(binding);
    assert_eq!(machine.nic().driver().as_deref(), Some("igb"));
}

#[test]
fn a_process_that_is_about_to_end_is_waited_for() {
    let machine = Machine::with_nic();
    let ends = |pid| Holder { pid, name: None }.is_ending(&machine.sysfs());
    machine.process(1, 'R', 0x40_0000);
    machine.process(2, 'Z', 0x40_0000);
    machine.process(3, 'R', 0x40_0004);
    machine.file("/proc/4/stat", "4 (garbled");
    assert_eq!([1, 2, 3, 4, 5].map(ends), [false, true, true, false, true]);
    let binding = bound(&machine);
    thread::scope(|scope| {
        let next = scope.spawn(|| bind(&machine.nic(), PLAIN));
        binding.die();
        // By adoption, or as a device that nobody has any more.
        drop(next.join().unwrap().unwrap());
    });
    assert_eq!(machine.nic().driver().as_deref(), Some("igb"));
}

#[test]
fn of_many_at_once_one_has_the_device() {
    let machine = Machine::with_nic();
    let (owners, bindings) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10 {
                    // Who finds it on vfio-pci while the other gives it back meets changes under its hands: that is an error, never two owners.
                    if let Ok(binding) = bind(&machine.nic(), PLAIN)
                        && binding.is_to_be_undone()
                    {
                        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                        bindings.fetch_add(1, Ordering::SeqCst);
                        owners.fetch_sub(1, Ordering::SeqCst);
                        drop(binding);
                    }
                }
            });
        }
    });
    assert!(bindings.load(Ordering::SeqCst) > 0);
    assert_eq!(machine.nic().driver().as_deref(), Some("igb"));
    assert!(!machine.path(STATE).exists());
}

#[test]
fn a_record_that_is_none_is_refused_and_followed_nowhere() {
    let machine = Machine::with_nic();
    bound(&machine).die();
    let good = std::fs::read_to_string(machine.path(STATE)).unwrap();
    for (from, to, words) in [
        ("\"igb\"", "\"../../../etc\"", "is no driver's name"),
        ("\"igb\"", "\"\"", "is no driver's name"),
        ("\"version\": 1", "\"version\": 2", "its version is 2"),
        ("0000:03:00.0", "0000:04:00.0", "it is about 0000:04:00.0"),
        ("{", "", "expected struct Record"),
    ] {
        machine.file(STATE, &good.replacen(from, to, 1));
        let error = restore(&machine).remove(0).outcome.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("remove it"), "{error}");
        assert_eq!(bind(&machine.nic(), PLAIN).err().unwrap().to_string(), error);
        assert_eq!(machine.nic().driver().as_deref(), Some("vfio-pci"));
    }
    machine.file(STATE, &good);
    restored(&machine);
}
