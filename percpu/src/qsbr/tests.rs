//! Whoever reads finds a whole table that is not freed under it, and none is kept longer than it has to be.

#[cfg(loom)]
mod model {
    use crate::qsbr::{Domain, Published, Reader, Shared};
    use loom::cell::UnsafeCell;
    use loom::model;
    use loom::thread;
    use std::time::Duration;

    /// Loom sees where a read and the drop are not in order.
    struct Table(UnsafeCell<u64>);

    // SAFETY: what is tested; loom watches every access.
    unsafe impl Sync for Table {}

    impl Table {
        fn new(number: u64) -> Self {
            Self(UnsafeCell::new(number))
        }

        fn number(&self) -> u64 {
            // SAFETY: loom looks whether anybody writes.
            self.0.with(|number| unsafe { *number })
        }
    }

    impl Drop for Table {
        fn drop(&mut self) {
            // SAFETY: loom looks whether anybody reads.
            self.0.with_mut(|number| unsafe { *number = u64::MAX });
        }
    }

    fn look(table: &Shared<Table>, reader: &Reader, last: &mut u64) {
        let number = table.get(reader).number();
        assert!(number != u64::MAX && number >= *last, "{number} after {last}");
        *last = number;
    }

    #[test]
    fn no_table_is_freed_under_a_reader_that_goes_round() {
        model(|| {
            let domain = Domain::new();
            let published = Published::new(&domain, Table::new(0));
            let (table, mut reader) = (published.shared(), domain.reader(0));
            reader.begin();
            let other = thread::spawn(move || {
                let mut last = 0;
                look(&table, &reader, &mut last);
                reader.quiescent();
                look(&table, &reader, &mut last);
            });
            // The second one finds no room where the reader has not gone on.
            for number in 1..=2 {
                let _ = published.publish(Table::new(number), Duration::ZERO);
            }
            other.join().unwrap();
            assert_eq!(published.collect(), 0);
        });
    }

    #[test]
    fn no_table_is_freed_under_a_reader_that_comes_and_goes() {
        model(|| {
            let domain = Domain::new();
            let published = Published::new(&domain, Table::new(0));
            let (table, mut reader) = (published.shared(), domain.reader(0));
            let other = thread::spawn(move || {
                let mut last = 0;
                reader.begin();
                look(&table, &reader, &mut last);
                reader.end();
                reader.begin();
                look(&table, &reader, &mut last);
                reader.end();
            });
            assert!(published.publish(Table::new(1), Duration::ZERO).is_ok());
            other.join().unwrap();
            assert_eq!(domain.collect(), None);
        });
    }
}

#[cfg(not(loom))]
mod plain {
    use crate::qsbr::{Domain, Held, MOST_RETIRED, Published, Reader, Shared};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    /// Counts those that live.
    struct Counted(u64, Arc<AtomicUsize>);

    impl Counted {
        fn new(number: u64, live: &Arc<AtomicUsize>) -> Self {
            live.fetch_add(1, Ordering::Relaxed);
            Self(number, Arc::clone(live))
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_reader_that_stays_in_its_turn_is_named_and_what_it_holds_is_bounded() {
        let live = Arc::default();
        let domain = Domain::new();
        let published = Published::new(&domain, Counted::new(0, &live));
        let table = published.shared();
        let mut readers: Vec<Reader> = (0..3).map(|name| domain.reader(name)).collect();
        readers[1].begin();
        let kept = table.get(&readers[1]);
        for number in 1..=MOST_RETIRED as u64 {
            published.publish(Counted::new(number, &live), Duration::ZERO).unwrap();
        }
        let refused = published.publish(Counted::new(99, &live), Duration::from_millis(1)).unwrap_err();
        assert_eq!((refused.retired, refused.reader, refused.table.0), (MOST_RETIRED, Some(1), 99));
        assert!(refused.to_string().contains("worker 1 has not ended its turn"), "{refused}");
        drop(refused);
        assert_eq!(domain.collect(), Some(Held { tables: MOST_RETIRED, by: Some(1) }));
        assert_eq!((kept.0, live.load(Ordering::Relaxed)), (0, MOST_RETIRED + 1));
        readers[1].quiescent();
        assert_eq!((domain.collect(), live.load(Ordering::Relaxed)), (None, 1));
        assert_eq!(table.get(&readers[1]).0, MOST_RETIRED as u64);
        // One that has ended, or went without an end, holds nothing.
        readers[0].begin();
        readers[1].end();
        drop(readers);
        published.publish(Counted::new(100, &live), Duration::ZERO).unwrap();
        assert_eq!(live.load(Ordering::Relaxed), 1);
        drop((published, table));
        assert_eq!((domain.collect(), live.load(Ordering::Relaxed)), (None, 0));
    }

    /// It waits for a reader that is only slow.
    #[test]
    fn whoever_publishes_waits_for_a_reader_that_goes_on() {
        let domain = Domain::new();
        let published = Published::new(&domain, 0);
        let mut reader = domain.reader(7);
        reader.begin();
        (0..MOST_RETIRED).for_each(|number| published.publish(number, Duration::ZERO).unwrap());
        let waiting = thread::spawn({
            let published = published.clone();
            move || published.publish(usize::MAX, Duration::from_secs(60)).is_ok()
        });
        while domain.is_inside(7) && !waiting.is_finished() {
            reader.quiescent();
            thread::yield_now();
        }
        assert!(waiting.join().unwrap());
        assert_eq!(*published.shared().get(&reader), usize::MAX);
    }

    #[test]
    fn outside_and_in_other_domains_nothing_can_be_read() {
        let (domain, other) = (Domain::new(), Domain::new());
        let table = Published::new(&domain, 5).shared();
        let (mut reader, mut stranger) = (domain.reader(0), other.reader(0));
        let get = |reader: &Reader| catch_unwind(AssertUnwindSafe(|| *table.get(reader))).ok();
        stranger.begin();
        assert_eq!((get(&reader), get(&stranger)), (None, None));
        reader.begin();
        assert_eq!(get(&reader), Some(5));
        reader.end();
        assert_eq!(get(&reader), None);
    }

    /// What a table is to whom: the readers that may hold it.
    #[derive(Default)]
    struct Model {
        inside: BTreeSet<usize>,
        retired: Vec<BTreeSet<usize>>,
    }

    impl Model {
        fn goes_on(&mut self, reader: usize) {
            for holders in &mut self.retired {
                holders.remove(&reader);
            }
            self.retired.retain(|holders| !holders.is_empty());
        }
    }

    proptest! {
        /// A table lives exactly as long as a reader may hold it.
        #[test]
        fn property_a_table_is_freed_when_nobody_can_hold_it_and_not_before(
            steps in prop::collection::vec((0..4_usize, 0..4_usize), 0..200)
        ) {
            let live = Arc::default();
            let domain = Domain::new();
            let published = Published::new(&domain, Counted::new(0, &live));
            let mut readers: Vec<(Reader, Shared<Counted>)> =
                (0..4).map(|name| (domain.reader(name), published.shared())).collect();
            let (mut model, mut number) = (Model::default(), 0);
            for (what, index) in steps {
                let (reader, table) = &mut readers[index];
                match what {
                    0 => {
                        reader.begin();
                        model.goes_on(index);
                        model.inside.insert(index);
                    }
                    1 => {
                        reader.end();
                        model.goes_on(index);
                        model.inside.remove(&index);
                    }
                    2 if model.inside.contains(&index) => {
                        reader.quiescent();
                        model.goes_on(index);
                        prop_assert_eq!(table.get(reader).0, number);
                    }
                    _ => {
                        let full = model.retired.len() == MOST_RETIRED;
                        let taken = published.publish(Counted::new(number + 1, &live), Duration::ZERO);
                        prop_assert_eq!(taken.is_err(), full);
                        if !full {
                            number += 1;
                            model.retired.push(model.inside.clone());
                            model.retired.retain(|holders| !holders.is_empty());
                        }
                    }
                }
                let held = domain.collect();
                prop_assert_eq!(held.map_or(0, |held| held.tables), model.retired.len());
                if let Some(held) = held {
                    prop_assert!(held.by.is_some_and(|by| model.retired[0].contains(&by)));
                }
                prop_assert_eq!(live.load(Ordering::Relaxed), model.retired.len() + 1);
            }
            drop((readers, published));
            prop_assert_eq!(live.load(Ordering::Relaxed), 0);
        }
    }
}
