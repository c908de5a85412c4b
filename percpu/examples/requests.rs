//! A web server's inside without the web: request handlers on any thread count what they do, and take a connection's buffer from a free
//! list, without a lock and without sharing a cache line.
//!
//! `cargo run --release -p percpu --example requests`
#![forbid(unsafe_code)]

use percpu::{Counters, Indexing, Log, Stack};
use std::mem::MaybeUninit;
use std::thread;
use std::time::Instant;

const REQUESTS: usize = 0;
const BYTES: usize = 1;
const WITHOUT_BUFFER: usize = 2;

const BUFFERS: u32 = 1024;
const HANDLERS: usize = 4;
const REQUESTS_EACH: u64 = 1_000_000;

fn main() {
    println!("per-CPU data by {}", percpu::rseq::registration());

    let counters = Counters::new(3);
    // The numbers of free buffers: up to 64 wait on each CPU, the rest in the shared part.
    let free = Stack::<u32>::new(64, BUFFERS as usize, Indexing::Auto);
    free.push(&(0..BUFFERS).collect::<Vec<_>>());
    let log = Log::new(4096);

    let start = Instant::now();
    thread::scope(|scope| {
        for handler in 0..HANDLERS {
            let (counters, free, log) = (&counters, &free, &log);
            scope.spawn(move || {
                for request in 0..REQUESTS_EACH {
                    let mut place = [MaybeUninit::uninit()];
                    let Some(&buffer) = free.pop(&mut place).first() else {
                        counters.add(WITHOUT_BUFFER, 1);
                        continue;
                    };
                    // Here the request would be read into that buffer, and answered.
                    counters.add(REQUESTS, 1);
                    counters.add(BYTES, request % 1500);
                    if request % 250_000 == 0 {
                        let line = format!("handler {handler}: request {request} in buffer {buffer}");
                        // A full log refuses and counts it: a handler never waits for whoever reads.
                        let _ = log.write(line.as_bytes());
                    }
                    free.push_one(buffer);
                }
            });
        }
    });
    let elapsed = start.elapsed();

    log.read_all(|line| println!("  {}", String::from_utf8_lossy(line)));
    println!("  {} records did not fit the log", log.overruns());
    println!(
        "{} requests, {} bytes, {} without a buffer; {:.1} ns each",
        counters.sum(REQUESTS),
        counters.sum(BYTES),
        counters.sum(WITHOUT_BUFFER),
        elapsed.as_nanos() as f64 / (HANDLERS as f64 * REQUESTS_EACH as f64)
    );

    // A thread that never popped can have what waits on any CPU: say, to shrink the pool.
    free.drain_all();
    println!("{} of {BUFFERS} buffers are free, all of them in the shared part: {}", free.len(), {
        use percpu::Shared;
        free.shared().len()
    });
}
