//! What is shared with firmware and the other port's driver, when they are slow.
#![forbid(unsafe_code)]

use super::super::chip::CHIPS;
use super::super::device::{Clock, Device};
use super::super::model::{Trouble, VirtualClock};
use super::super::registers::{SW_FW_SYNC_MAC_CSR, SW_FW_SYNC_PHY0, SW_FW_SYNC_REGSMP};
use super::super::semaphore::{acquire, give_back};
use super::*;
use std::time::Instant;

/// A clock by which each sleep takes twice as long as was asked for.
struct Sleepy(Arc<VirtualClock>);

impl Clock for Sleepy {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep(&self, duration: Duration) {
        self.0.sleep(2 * duration);
    }
}

fn device(model: &Model, clock: Arc<dyn Clock>) -> Device {
    let function: Arc<dyn PciFunction> = Arc::new(model.clone());
    let chip = CHIPS.iter().find(|chip| chip.device == function.id().device).unwrap();
    Device::new(&function, chip, clock).unwrap()
}

/// A model, its control thread's view of it, and the resource that a recovery takes.
fn in_a_hurry(kind: Kind) -> (Model, Device, u32) {
    let model = Model::new(kind);
    let device = device(&model, model.clock.clone());
    device.hurry();
    (model, device, if kind == Kind::X540 { SW_FW_SYNC_PHY0 } else { SW_FW_SYNC_MAC_CSR })
}

#[test]
fn what_could_not_be_given_back_is_still_ours() {
    for kind in [Kind::X540, Kind::N82599] {
        let (model, device, resource) = in_a_hurry(kind);
        let state = || (model.peek("SWSM", 0), model.peek("SW_FW_SYNC", 0));
        for again in [true, false] {
            let held = acquire(&device, resource).unwrap();
            model.poke("SWSM", 0, 1);
            drop(held);
            assert_eq!(state(), (1, resource), "{kind:?}: the other port's driver is at work");
            give_back(&device);
            assert_eq!(state(), (1, resource), "{kind:?}: and still is");
            model.poke("SWSM", 0, 0);
            if again {
                drop(acquire(&device, resource).unwrap());
            } else {
                give_back(&device);
            }
            assert_eq!(state(), (0, 0), "{kind:?}");
        }
        // It is forgotten with that: now it is somebody else's.
        model.poke("SW_FW_SYNC", 0, resource);
        give_back(&device);
        assert!(acquire(&device, resource).is_err(), "{kind:?}");
        assert_eq!(state(), (0, resource), "{kind:?}");
        assert_eq!(model.take_violations(), [] as [String; 0]);
    }
}

#[test]
fn what_a_recovery_could_not_give_back_is_given_back_at_the_next_step_or_at_the_end() {
    let steps = [(Kind::X540, "CTRL"), (Kind::N82599, "AUTOC")];
    for ((kind, register), close) in steps.into_iter().flat_map(|step| [(step, false), (step, true)]) {
        let mut bed = Bed::new(kind, &Wish::default());
        recovery::hang(&mut bed, 0);
        bed.model.trouble(Trouble::SmbiGoesWith(register));
        while bed.model.peek("SWSM", 0) == 0 {
            bed.turn(Duration::from_secs(1));
        }
        assert_ne!(bed.model.peek("SW_FW_SYNC", 0), 0, "{kind:?}");
        bed.model.poke("SWSM", 0, 0);
        if close {
            bed.close();
            continue;
        }
        bed.turn(Duration::from_secs(1));
        assert_eq!(bed.model.peek("SW_FW_SYNC", 0), 0, "{kind:?}: the firmware may have it");
        (0..4).for_each(|_| bed.turn(Duration::from_secs(1)));
        assert_eq!(bed.extra("hang_recoveries"), 1, "{kind:?}");
        bed.close();
    }
}

#[test]
fn a_semaphore_that_was_taken_long_ago_too_has_not_been_kept_since() {
    let (model, device, resource) = in_a_hurry(Kind::X540);
    for _ in 0..3 {
        model.poke("SWSM", 0, 1);
        assert!(acquire(&device, resource).is_err());
        assert_eq!(model.peek("SWSM", 0), 1, "the other port's driver has only just taken it");
        model.poke("SWSM", 0, 0);
        model.clock.advance(Duration::from_secs(3600));
    }
    model.assert_good();
}

#[test]
fn the_other_port_s_driver_is_waited_for_by_the_clock() {
    let model = Model::new(Kind::N82599);
    let device = device(&model, Arc::new(Sleepy(model.clock.clone())));
    model.poke("SWSM", 0, 1);
    drop(acquire(&device, SW_FW_SYNC_MAC_CSR).unwrap());
    let waited = model.clock.passed();
    assert!(waited > Duration::from_secs(3) && waited < Duration::from_secs(4), "{waited:?}");
    model.assert_good();
}

#[test]
fn regsmp_is_not_given_back_by_who_does_not_have_it() {
    let (model, device, resource) = in_a_hurry(Kind::X540);
    model.poke("SW_FW_SYNC", 0, SW_FW_SYNC_REGSMP);
    for _ in 0..3 {
        let error = acquire(&device, resource).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("REGSMP"), "{error}");
        assert_eq!((model.peek("SWSM", 0), model.peek("SW_FW_SYNC", 0)), (0, SW_FW_SYNC_REGSMP));
        assert_eq!(model.take_violations(), [] as [String; 0]);
        model.clock.advance(Duration::from_secs(1));
    }
    // Its time is over.
    drop(acquire(&device, resource).unwrap());
    assert_eq!(model.take_violations(), ["SW_FW_SYNC was written without its guards"]);
    model.assert_good();
}
