//! Network namespaces as hosts, joined by veth pairs: real kernels' ends for a real forwarder.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{l2fwd, run_within, wait_within};

/// Says SKIPPED and gives false where namespaces cannot be made.
pub fn can_make_namespaces(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root for network namespaces");
    }
    root
}

/// A network namespace of our own; deleted when dropped, with every interface in it.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("isoplane-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let this = Self { name };
        this.ip(&["link", "set", "lo", "up"]);
        this
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a command inside; it must succeed.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        succeed(&mut self.command(program, args))
    }

    /// `ip` inside.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) -> String {
        self.run("ip", args)
    }

    /// Runs a closure on a thread that is inside.
    pub fn spawn<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = run_within(command, Duration::from_secs(120));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a command that must succeed.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    succeed(Command::new(program).args(args).stdin(Stdio::null()))
}

/// Whether a ping is answered at once: for asking again and again.
pub fn answers(from: &Namespace, address: &str) -> bool {
    from.command("ping", &["-q", "-c", "1", "-W", "0.3", address]).output().unwrap().status.success()
}

/// Two hosts whose only way to each other is whatever runs in the namespace between them:
///
/// ```text
/// left [eth0] ---- [p0] middle [p1] ---- [eth0] right
/// ```
pub struct Wire {
    pub left: Namespace,
    pub middle: Namespace,
    pub right: Namespace,
}

impl Wire {
    /// With addresses 10.0.0.1 and 10.0.0.2, fd00::1 and fd00::2, and checksums in every packet.
    pub fn new(mtu: u32) -> Self {
        let wire = Self { left: Namespace::new(), middle: Namespace::new(), right: Namespace::new() };
        let mtu = mtu.to_string();
        for (index, (host, port)) in [(&wire.left, "p0"), (&wire.right, "p1")].into_iter().enumerate() {
            let number = index + 1;
            wire.middle
                .ip(&["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", &host.name]);
            wire.middle.ip(&["link", "set", port, "mtu", &mtu, "up"]);
            host.ip(&["link", "set", "eth0", "mtu", &mtu, "up"]);
            host.ip(&["addr", "add", &format!("10.0.0.{number}/24"), "dev", "eth0"]);
            host.ip(&["addr", "add", &format!("fd00::{number}/64"), "dev", "eth0", "nodad"]);
            // Who asks for an address before anybody listens asks again: after a second, three times, where nothing else is said.
            let settings = "retrans_time_ms=100 mcast_solicit=30 ucast_solicit=30";
            let script = "for at in /proc/sys/net/ipv*/neigh/eth0; do for to in $0; do echo ${to#*=} >$at/${to%=*}; done; done";
            host.run("sh", &["-ec", script, settings]);
            // A packet that never leaves the machine has no checksum, unless it is told to; and no segmentation either.
            host.run(
                "ethtool",
                &["-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off", "txvlan", "off"],
            );
        }
        wire
    }

    /// Starts l2fwd in the middle, on both ports unless told others; it is forwarding when this returns.
    #[track_caller]
    pub fn forward(&self, args: &[&str]) -> Forwarder {
        self.forward_by(&[], args)
    }

    /// The same, before nearly everything else that wants a CPU: what other tests do must not take the worker's.
    #[track_caller]
    pub fn forward_first(&self, args: &[&str]) -> Forwarder {
        // The scheduler weighs sessions before it weighs what runs in them.
        let forwarder = self.forward_by(&["nice", "-n", "-20", "setsid"], args);
        let session = format!("/proc/{}/autogroup", forwarder.pid());
        if std::path::Path::new(&session).exists() {
            std::fs::write(session, "-20").unwrap();
        }
        forwarder
    }

    #[track_caller]
    fn forward_by(&self, launcher: &[&str], args: &[&str]) -> Forwarder {
        let ports: &[&str] = match args.contains(&"--port") {
            true => &[],
            false => &["--port", "afxdp:p0", "--port", "afxdp:p1"],
        };
        let args = [ports, args].concat();
        let forwarder = Forwarder::launch(&self.middle, launcher, &args);
        forwarder.wait_until_open(args.iter().filter(|word| **word == "--port").count());
        self.wait_for_link();
        forwarder
    }

    /// Makes both hosts send nothing by themselves any more: no neighbour discovery, no multicast reports.
    pub fn silence(&self) {
        for host in [&self.left, &self.right] {
            host.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"]);
            host.ip(&["addr", "flush", "dev", "eth0"]);
        }
    }

    /// Waits until a first ping passes, for 20 s at most.
    #[track_caller]
    pub fn wait_for_link(&self) {
        let start = Instant::now();
        while !answers(&self.left, "10.0.0.2") {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing passes");
        }
    }
}

/// A running `l2fwd --no-mac-updating`; killed when dropped.
pub struct Forwarder {
    child: Option<Child>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts it in a namespace, and does not wait for it.
    #[track_caller]
    pub fn start(namespace: &Namespace, args: &[&str]) -> Self {
        Self::launch(namespace, &[], args)
    }

    /// The same by programs that become l2fwd.
    #[track_caller]
    fn launch(namespace: &Namespace, launcher: &[&str], args: &[&str]) -> Self {
        let l2fwd = l2fwd(&[]).get_program().to_str().unwrap().to_owned();
        let line = [launcher, &[&l2fwd, "--no-mac-updating", "--stats-period", "0"], args].concat();
        let mut command = namespace.command(line[0], &line[1..]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let lines = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = lines.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child: Some(child), log, reader: Some(reader) }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until its log says that so many ports are open.
    #[track_caller]
    pub fn wait_until_open(&self, ports: usize) {
        self.wait_for_log(&format!("port {}:", ports - 1));
    }

    /// Waits until its log has these words, for 10 s at most.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) {
        let start = Instant::now();
        while !self.log().contains(words) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "\"{words}\" is not in its log: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal and waits for its end.
    #[track_caller]
    pub fn end(self, signal: &str) -> ExitStatus {
        run("kill", &[&format!("-{signal}"), &self.pid().to_string()]);
        self.wait(Duration::from_secs(10))
    }

    /// Waits for its own end.
    #[track_caller]
    pub fn wait(self, limit: Duration) -> ExitStatus {
        self.wait_with_log(limit).0
    }

    /// Waits for its own end, and gives all that it logged too.
    #[track_caller]
    pub fn wait_with_log(mut self, limit: Duration) -> (ExitStatus, String) {
        let status = wait_within(&mut self.child.take().unwrap(), limit);
        self.reader.take().unwrap().join().unwrap();
        (status.unwrap_or_else(|| panic!("l2fwd does not end: {}", self.log())), self.log())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
