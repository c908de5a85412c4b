//! Two hosts, each a network namespace, whose only way to each other is a guest: a NIC of it is the other end of each one's interface.
#![allow(dead_code, clippy::unwrap_used)]

use bench::vm::Guest;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What goes over TCP, one way.
pub(crate) const TRANSFER_BYTES: usize = 50_000_000;
/// How long a host waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERFACE: &str = "eth0";
const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

/// The hosts; gone when dropped.
pub(crate) struct Hosts {
    names: [String; 2],
}

impl Hosts {
    /// Says SKIPPED and gives `None` where namespaces cannot be made.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED {test}: needs root for network namespaces");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|host| format!("isoplane-vm-{}-{number}{host}", std::process::id()));
        names.iter().for_each(|name| ip(&["netns", "add", name]));
        Some(Self { names })
    }

    /// A guest with two NICs of this model, the `options` of each behind it (`addr=0x05`), that lead to the hosts by TAPs of so many queues.
    pub(crate) fn plug_into(&self, guest: Guest, model: &str, options: [&str; 2], queues: usize) -> Guest {
        self.names.iter().zip(options).fold(guest, |guest, (name, options)| {
            guest.nic_on_tap(&format!("{model},{options}"), name, INTERFACE, queues)
        })
    }

    /// Pings through the guest, and sends 50 MB by TCP: every echo comes back, and every byte arrives as it was sent. The guest runs, and
    /// in it an `l2fwd --no-mac-updating` that forwards.
    #[track_caller]
    pub(crate) fn ping_and_transfer(&self) {
        for (name, address) in self.names.iter().zip(ADDRESSES) {
            ip(&["-n", name, "addr", "replace", &format!("{address}/24"), "dev", INTERFACE]);
        }
        let ping = Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.names[0],
                "ping",
                "-c",
                "10",
                "-i",
                "0.05",
                "-W",
                "10",
                ADDRESSES[1],
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ping.stdout);
        assert!(
            said.contains("10 packets transmitted, 10 received"),
            "{said}{}",
            String::from_utf8_lossy(&ping.stderr)
        );

        let listener = self.inside(1, || TcpListener::bind((ADDRESSES[1], 0)).unwrap()).join().unwrap();
        let to = listener.local_addr().unwrap();
        // It is accepted, or there is nothing to wait for.
        let connect = move || TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        let mut stream = self.inside(0, connect).join().unwrap();
        let receiver = thread::spawn(move || receive(&listener));
        let sender = thread::spawn(move || send(&mut stream));
        sender.join().unwrap();
        let received = receiver.join().unwrap();
        assert_eq!(received, TRANSFER_BYTES, "bytes that came as they were sent");
    }

    /// Runs a closure on a thread that is inside.
    fn inside<T: Send + 'static>(
        &self,
        host: usize,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.names[host])).unwrap();
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// The byte of the transfer at a place: no two blocks of 64 KiB are alike.
fn byte(place: usize) -> u8 {
    (place ^ (place >> 8) ^ (place >> 16)) as u8
}

fn send(stream: &mut TcpStream) {
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut place = 0;
    while place < TRANSFER_BYTES {
        let block: Vec<u8> = (place..TRANSFER_BYTES.min(place + 65_536)).map(byte).collect();
        stream.write_all(&block).unwrap();
        place += block.len();
    }
}

/// The bytes that came as they were sent, to the first that did not.
fn receive(listener: &TcpListener) -> usize {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut buffer, mut place) = (vec![0; 65_536], 0);
    loop {
        let length = stream.read(&mut buffer).unwrap();
        let right = (place..).zip(&buffer[..length]).take_while(|(place, got)| byte(*place) == **got).count();
        place += right;
        if length == 0 || right < length {
            return place;
        }
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
