//! A value of any type for each CPU, with cache lines of its own.
//!
//! What [`PerCpu::get`] gives is a hint: the thread may be moved the moment after, and another may come. So the type must stand being
//! shared; what is won is that it hardly ever is. Atomics, mutexes that are nearly always free, and the like.
#![forbid(unsafe_code)]

use crate::slots::{Indexing, Indices};

/// Two cache lines, as the CPU fetches them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

/// One `T` for each slot, and one that threads without a slot share.
#[derive(Debug)]
pub struct PerCpu<T> {
    indices: Indices,
    values: Box<[Padded<T>]>,
}

impl<T> PerCpu<T> {
    /// Makes the values; `make` gets the number of each, the last of which is the shared one.
    pub fn new(make: impl FnMut(usize) -> T) -> Self {
        Self::with_indexing(Indexing::Auto, make)
    }

    /// The same, with a choice of what slots go by.
    pub fn with_indexing(indexing: Indexing, make: impl FnMut(usize) -> T) -> Self {
        let indices = Indices::new(indexing);
        Self { indices, values: (0..=indices.count() as usize).map(make).map(Padded).collect() }
    }

    /// The value of the CPU that the calling thread is on just now.
    #[inline]
    pub fn get(&self) -> &T {
        let index = self.indices.here().unwrap_or_else(|| self.indices.otherwise());
        &self.values[index as usize].0
    }

    /// All values, the shared one last.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &T> {
        self.values.iter().map(|value| &value.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Topology, pin_on_cpu};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn each_cpu_has_its_own() {
        let numbers = PerCpu::with_indexing(Indexing::Cpu, |_| AtomicUsize::new(0));
        for cpu in Topology::read().unwrap().allowed.iter() {
            let _pinned = pin_on_cpu(cpu).unwrap();
            numbers.get().fetch_add(cpu + 1, Ordering::Relaxed);
            if let crate::rseq::Registration::Off { .. } = crate::rseq::registration() {
                continue;
            }
            let there: Vec<usize> = numbers.iter().map(|number| number.load(Ordering::Relaxed)).collect();
            assert_eq!(there[cpu], cpu + 1, "{there:?}");
        }
        crate::rseq::give_up();
        numbers.get().fetch_add(77, Ordering::Relaxed);
        assert!(numbers.iter().any(|number| number.load(Ordering::Relaxed) >= 77));
    }
}
