//! The model is no yes-man: each mistake that a driver could make is made here on purpose, and told of.
#![forbid(unsafe_code)]

use super::*;
use crate::vfio::registers::RegisterSpace;

/// Does something wrong to a port that is open, and wants to be told so.
#[track_caller]
fn wrong(kind: Kind, what: &str, mistake: impl FnOnce(&Model)) {
    let bed = Bed::new(kind, &Wish::default());
    bed.model.assert_good();
    mistake(&bed.model);
    let told = bed.model.take_violations();
    assert!(told.iter().any(|line| line.contains(what)), "wanted \"{what}\", and was told {told:?}");
}

#[test]
fn registers_that_do_not_exist_or_are_touched_wrongly() {
    wrong(Kind::N82599, "where there is no register", |model| _ = model.read32(0x1_2344));
    wrong(Kind::N82599, "where there is no register", |model| model.write32(0xEE80, 0));
    wrong(Kind::X540, "where there is no register", |model| _ = model.read32(0x42A0));
    wrong(Kind::N82599, "16 bits", |model| _ = model.read16(0));
    wrong(Kind::N82599, "can only be read", |model| model.write("LINKS", 0, 1));
    wrong(Kind::N82599, "can only be read", |model| model.write("GPRC", 0, 0));
    wrong(Kind::N82599, "FCTRL: reserved bits 0x00002000", |model| model.write("FCTRL", 0, 1 << 13 | 0x500));
    wrong(Kind::N82599, "DTXMXSZRQ: reserved bits", |model| model.write("DTXMXSZRQ", 0, 0xFFFF));
    wrong(Kind::N82599, "TDBAL: reserved bits", |model| model.write("TDBAL", 9, 0x1040));
}

#[test]
fn queues_in_the_wrong_order() {
    wrong(Kind::N82599, "RDT of queue 3 was written before", |model| model.write("RDT", 3, 5));
    wrong(Kind::N82599, "TDT of queue 3 was written before", |model| model.write("TDT", 3, 5));
    wrong(Kind::N82599, "RDBAL was written while the queue is enabled", |model| {
        model.write("RDBAL", 0, 0x1_0000);
    });
    wrong(Kind::N82599, "TDH was written while the queue is enabled", |model| model.write("TDH", 0, 0));
    wrong(Kind::N82599, "a ring of 0 bytes", |model| {
        model.write("RXDCTL", 2, 1 << 25);
        (0..5).for_each(|_| _ = model.read("RXDCTL", 2));
    });
    wrong(Kind::N82599, "enabled with head or tail not 0", |model| {
        model.write("TDLEN", 2, 1024);
        model.write("TDH", 2, 4);
        model.write("TXDCTL", 2, 1 << 25);
    });
    wrong(Kind::N82599, "before DMATXCTL.TE", |model| {
        model.write("DMATXCTL", 0, model.peek("DMATXCTL", 0) & !1);
        model.write("TDLEN", 2, 1024);
        model.write("TXDCTL", 2, 1 << 25);
    });
    wrong(Kind::N82599, "without RTTDCS.ARBDIS", |model| model.write("MTQC", 0, 0));
    wrong(Kind::N82599, "PTHRESH without HTHRESH", |model| model.write("TXDCTL", 2, 1 << 25 | 32));
}

#[test]
fn tails_and_descriptors() {
    wrong(Kind::N82599, "RDT of queue 0: 64 in a ring of 64", |model| model.write("RDT", 0, 64));
    wrong(Kind::N82599, "TDT of queue 0: 99 in a ring of 64", |model| model.write("TDT", 0, 99));
    wrong(Kind::N82599, "a legacy descriptor", |model| model.write("TDT", 0, 1));
    let ring = |model: &Model| u64::from(model.peek("TDBAL", 0)) | u64::from(model.peek("TDBAH", 0)) << 32;
    // A frame of the pool: the first receive buffer.
    let frame_address = |model: &Model| {
        let base = u64::from(model.peek("RDBAL", 0)) | u64::from(model.peek("RDBAH", 0)) << 32;
        let mut bytes = [0; 8];
        assert!(model.iommu().read(base, &mut bytes));
        u64::from_le_bytes(bytes)
    };
    let send = |model: &Model, descriptors: &[[u64; 2]]| {
        for (at, words) in descriptors.iter().enumerate() {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert!(model.iommu().write(ring(model) + at as u64 * 16, &bytes));
        }
        model.write("TDT", 0, descriptors.len() as u32);
    };
    let data = |length: u64, total: u64| length | total << 46 | 3 << 20 | 1 << 29 | 1 << 25;
    const EOP: u64 = 1 << 24;
    const RS: u64 = 1 << 27;
    let one = |model: &Model, word: u64| send(model, &[[frame_address(model), word]]);
    let good = Bed::new(Kind::N82599, &Wish::default());
    one(&good.model, data(100, 100) | EOP | RS);
    assert_eq!(good.model.take_sent().len(), 1);
    good.model.assert_good();
    drop(good);

    wrong(Kind::N82599, "TDT in the middle of a packet", |model| one(model, data(100, 100)));
    wrong(Kind::N82599, "PAYLEN 99 of a packet of 100", |model| one(model, data(100, 99) | EOP));
    wrong(Kind::N82599, "a packet of 16 bytes", |model| one(model, data(16, 16) | EOP));
    wrong(Kind::N82599, "a packet of 16000 bytes", |model| one(model, data(16_000, 16_000) | EOP));
    wrong(Kind::N82599, "without data", |model| one(model, data(0, 0) | EOP));
    wrong(Kind::N82599, "IFCS", |model| one(model, data(100, 100) & !(1 << 25) | EOP));
    wrong(Kind::N82599, "VLE or TSE", |model| one(model, data(100, 100) | EOP | 1 << 31));
    wrong(Kind::N82599, "a data descriptor: reserved bits", |model| {
        one(model, data(100, 100) | EOP | 1 << 28)
    });
    wrong(Kind::N82599, "RS without EOP", |model| {
        send(
            model,
            &[[frame_address(model), data(50, 100) | RS], [frame_address(model), data(50, 100) | EOP]],
        );
    });
    wrong(Kind::N82599, "reserved type 5", |model| one(model, 5 << 20 | 1 << 29 | EOP));
    wrong(Kind::N82599, "a checksum without a context", |model| one(model, data(100, 100) | EOP | 1 << 41));
    wrong(Kind::N82599, "MACLEN 4, IPLEN 20", |model| {
        send(model, &[[20 | 4 << 9, 2 << 20 | 1 << 29 | 1 << 10]])
    });
    wrong(Kind::N82599, "reserved bits, or those", |model| {
        send(model, &[[20 | 14 << 9, 2 << 20 | 1 << 29 | 1 << 10 | 40 << 40]]);
    });
    wrong(Kind::N82599, "41 descriptors", |model| {
        let mut all = vec![[frame_address(model), data(100, 4100)]; 41];
        all[40][1] |= EOP;
        send(model, &all);
    });
    wrong(Kind::N82599, "a transmit buffer: an address that is not mapped", |model| {
        send(model, &[[0x7000_0000_0000, data(100, 100) | EOP]]);
    });
    wrong(Kind::N82599, "given away with DD set", |model| {
        let base = u64::from(model.peek("RDBAL", 0)) | u64::from(model.peek("RDBAH", 0)) << 32;
        // The one place that is still the driver's.
        assert!(model.iommu().write(base + 63 * 16 + 8, &[1]));
        model.write("RDT", 0, 0);
    });
}

#[test]
fn memory_that_is_gone() {
    let bed = Bed::new(Kind::N82599, &Wish::default());
    let Bed { model, nic, rx, tx, .. } = bed;
    // As if a driver had not stopped its device before it gave the rings back.
    model.poke("RXCTRL", 0, 1);
    drop((rx, tx));
    model.set_bus_master(true);
    assert_eq!(model.wire(&frame(OURS, 60, 1)), Fate::Missed);
    assert_eq!(model.take_violations(), ["a receive buffer: an address that is not mapped"]);
    drop(nic);
}

#[test]
fn resets_that_are_not_waited_for() {
    let rst = 1 << 26;
    wrong(Kind::N82599, "reset without master disable", |model| model.write("CTRL", 0, rst));
    wrong(Kind::N82599, "before STATUS.PCIe Master Enable was seen clear", |model| {
        model.write("CTRL", 0, 4);
        model.write("CTRL", 0, rst | 4);
    });
    wrong(Kind::X540, "without the PHY's semaphore", |model| model.write("CTRL", 0, rst));
    wrong(Kind::X550, "LRST", |model| model.write("CTRL", 0, rst | 8));
    wrong(Kind::N82599, "write to FCTRL while the device is being reset", |model| {
        model.write("CTRL", 0, rst);
        model.write("FCTRL", 0, 0);
    });
    wrong(Kind::N82599, "read of RAL while the device is being reset", |model| {
        model.write("CTRL", 0, rst);
        model.read("RAL", 0);
    });
    let reset = |model: &Model, pause| {
        model.write("CTRL", 0, rst);
        (0..3).for_each(|_| _ = model.read("CTRL", 0));
        model.clock.advance(Duration::from_millis(pause));
    };
    wrong(Kind::N82599, "too soon after a reset", |model| {
        reset(model, 9);
        model.write("FCTRL", 0, 0);
    });
    wrong(Kind::X540, "too soon after a reset", |model| {
        reset(model, 20);
        model.write("FCTRL", 0, 0);
    });
    wrong(Kind::N82599, "before RDRXCTL.DMAIDONE was seen", |model| {
        reset(model, 11);
        model.write("RDBAL", 0, 0);
    });
    wrong(Kind::N82599, "before EEC.ARD was seen", |model| {
        reset(model, 11);
        model.write("RAL", 0, 0);
    });
}

#[test]
fn receive_that_is_turned_on_too_soon() {
    // Off, one thing wrong, and on again.
    let on_with = |what: &str, mistake: &dyn Fn(&Model)| {
        wrong(Kind::N82599, what, |model| {
            model.write("RXCTRL", 0, 0);
            model.write("SECRXCTRL", 0, 3);
            (0..3).for_each(|_| _ = model.read("SECRXSTAT", 0));
            mistake(model);
            model.write("RXCTRL", 0, 1);
        });
    };
    on_with("packets may be in the security unit", &|model| model.write("SECRXCTRL", 0, 1));
    on_with("NS_DIS", &|model| model.write("CTRL_EXT", 0, 0));
    on_with("bit 12", &|model| model.write("DCA_RXCTRL", 0, 0xB200));
    on_with("RSCFRSTSIZE", &|model| model.write("RDRXCTL", 0, 0x0010_0002));
    on_with("CRCSTRIP", &|model| model.write("HLREG0", 0, model.peek("HLREG0", 0) & !2));
    on_with("packet buffers of 513 KiB", &|model| model.write("RXPBSIZE", 7, 1 << 10));
    on_with("MRQC.MRQE 2", &|model| model.write("MRQC", 0, 2));
    on_with("RSS without RXCSUM.PCSD", &|model| {
        model.write("RXCSUM", 0, 0);
        model.write("MRQC", 0, 1);
    });
    on_with("priority flow control", &|model| model.write("MFLCN", 0, 1 << 5));
    wrong(Kind::N82599, "MAXFRS of more than", |model| model.write("MAXFRS", 0, 16_000 << 16));
    wrong(Kind::N82599, "RFCTL was written while receive is on", |model| model.write("RFCTL", 0, 0x20));
    wrong(Kind::N82599, "an interrupt is enabled", |model| model.write("EIMS", 0, 1));
}

#[test]
fn semaphores_that_are_not_taken() {
    wrong(Kind::N82599, "AUTOC was written without", |model| model.write("AUTOC", 0, 0));
    wrong(Kind::X540, "MSCA was written without", |model| model.write("MSCA", 0, 1 << 30));
    wrong(Kind::N82599, "without its guards", |model| model.write("SW_FW_SYNC", 0, 8));
    wrong(Kind::N82599, "SWESMBI without SMBI", |model| model.write("SWSM", 0, 2));
    wrong(Kind::X540, "REGSMP", |model| model.write("SWSM", 0, 2));
    wrong(Kind::X540, "while a command runs", |model| {
        model.poke("SW_FW_SYNC", 0, 2);
        model.write("MSCA", 0, 1 << 30);
        model.write("MSCA", 0, 1 << 30);
    });
    wrong(Kind::X550, "another register than in the address cycle", |model| {
        model.poke("SW_FW_SYNC", 0, 2);
        model.write("MSCA", 0, 1 << 30 | 7);
        (0..3).for_each(|_| _ = model.read("MSCA", 0));
        model.write("MSCA", 0, 1 << 30 | 3 << 26 | 8);
    });
}
