//! A pinned thread in a process of its own, and this process as the outsider: `sched_setaffinity(2)`, cpusets, and the veto.
//!
//! Linked statically, this binary also runs in a guest whose kernel has BPF LSM and cgroup v2.
#![allow(clippy::unwrap_used)]

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, geteuid};
use percpu::veto::{Veto, VetoError};
use percpu::{CpuList, Pinned, Topology, pin_on_cpu};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);
/// Set in the process that is pinned.
const PINNED: &str = "ISOPLANE_TEST_PINNED";
/// Begins each of its answers, since the test harness prints too.
const ANSWER: &str = "> ";

/// No test, but what [`Other`] runs: does what it is told line by line, until its input ends.
#[test]
#[ignore = "the other process of these tests"]
fn the_pinned_process() {
    if std::env::var_os(PINNED).is_none() {
        return;
    }
    let mut pinned: Option<Pinned> = None;
    let mut kept = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let answer = obey(&line, &mut pinned, &mut kept).unwrap_or_else(|error| error.to_string());
        println!("{ANSWER}{answer}");
    }
}

fn obey(
    line: &str,
    slot: &mut Option<Pinned>,
    kept: &mut Vec<Veto>,
) -> Result<String, Box<dyn std::error::Error>> {
    if let Some(cpu) = line.strip_prefix("pin ") {
        *slot = Some(pin_on_cpu(cpu.parse()?)?);
        return Ok(nix::unistd::gettid().to_string());
    }
    let Some(pinned) = slot else { return Err("not pinned".into()) };
    Ok(match line {
        "check" => pinned.check().map(|()| "in place".to_owned())?,
        "watch" => pinned.watch().check()?.map_or("nothing".into(), |outsider| outsider.to_string()),
        "repin" => pinned.repin().map(|()| "in place".to_owned())?,
        "forbid" => {
            // Dropped here: the guard's protection must keep it going.
            let veto = Veto::load()?;
            pinned.forbid_outsiders(&veto).map(|()| "forbidden".to_owned())?
        }
        "forbid by one that stays" => {
            kept.push(Veto::load()?);
            pinned.forbid_outsiders(&kept[kept.len() - 1]).map(|()| "forbidden".to_owned())?
        }
        "forbid again by the same" => {
            pinned.forbid_outsiders(&kept[kept.len() - 1]).map(|()| "forbidden".to_owned())?
        }
        "refused" => pinned.refused().to_string(),
        "from within" => {
            let (tid, cpu) = (pinned.watch().tid(), pinned.cpu());
            let change = move || set_affinity(Pid::from_raw(tid), &CpuList::from_iter([cpu]));
            format!("{:?}", thread::spawn(change).join().map_err(|_| "panicked")?)
        }
        "unpin" => {
            *slot = None;
            "unpinned".into()
        }
        _ => return Err("what?".into()),
    })
}

/// The other process, which has one thread to pin.
struct Other {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Other {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "the_pinned_process", "--nocapture", "--test-threads=1"]);
        command.env(PINNED, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (send, answers) = channel();
        thread::spawn(move || {
            for line in lines {
                // The harness leaves its own line open.
                if let Some((_, answer)) = line.split_once(ANSWER) {
                    let _ = send.send(answer.to_owned());
                }
            }
        });
        let orders = child.stdin.take();
        Self { child, orders, answers }
    }

    #[track_caller]
    fn order(&mut self, line: &str) -> String {
        writeln!(self.orders.as_mut().unwrap(), "{line}").unwrap();
        self.answers.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no answer to \"{line}\""))
    }

    #[track_caller]
    fn pin(&mut self, cpu: usize) -> Pid {
        let answer = self.order(&format!("pin {cpu}"));
        Pid::from_raw(answer.parse().unwrap_or_else(|_| panic!("{answer}")))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_affinity(thread: Pid, cpus: &CpuList) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus.iter() {
        set.set(cpu)?;
    }
    sched_setaffinity(thread, &set)
}

/// Two CPUs of this process; says SKIPPED where there is one.
fn two_cpus(test: &str) -> Option<(usize, usize)> {
    let allowed = Topology::read().unwrap().allowed;
    let mut cpus = allowed.iter();
    let pair = cpus.next().zip(cpus.next());
    if pair.is_none() {
        eprintln!("SKIPPED {test}: needs a second CPU");
    }
    pair
}

#[test]
fn another_processes_change_is_noticed_and_undone() {
    let Some((one, two)) = two_cpus("another_processes_change_is_noticed_and_undone") else { return };
    let mut other = Other::start();
    let thread = other.pin(two);
    assert_eq!(other.order("check"), "in place");
    assert_eq!(other.order("watch"), "nothing");
    set_affinity(thread, &[one, two].into_iter().collect()).unwrap();
    let both: CpuList = [one, two].into_iter().collect();
    let found = other.order("watch");
    assert!(found.contains(&format!("changed from outside: {two} -> {both}")), "{found}");
    assert_eq!(other.order("repin"), "in place");
    assert_eq!(other.order("check"), "in place");
    set_affinity(thread, &CpuList::from_iter([one])).unwrap();
    let found = other.order("check");
    assert!(found.contains(&format!("{two} -> {one}, moved from CPU {two} to CPU {one}")), "{found}");
    assert_eq!(other.order("repin"), "in place");
    assert_eq!(other.order("watch"), "nothing");
}

/// A cgroup for cpusets, removed at the end.
struct Cpuset {
    folder: PathBuf,
    /// What we allowed the root's children to use (cgroup v2), to be taken back.
    enabled: Option<PathBuf>,
}

impl Cpuset {
    /// In whichever hierarchy has the controller, or says SKIPPED.
    fn new(test: &str, cpus: &CpuList) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED {test}: needs root for cpusets");
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let hierarchy = mounts.lines().find_map(|line| {
            let field: Vec<&str> = line.split(' ').collect();
            let place = Path::new(field[1]);
            let controllers = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
            let version1 = field[2] == "cgroup" && field[3].split(',').any(|option| option == "cpuset");
            let version2 =
                field[2] == "cgroup2" && controllers.split_whitespace().any(|name| name == "cpuset");
            (version1 || version2).then(|| (place.to_owned(), version2))
        });
        let Some((root, version2)) = hierarchy else {
            eprintln!("SKIPPED {test}: this machine has no cpuset controller");
            return None;
        };
        let control = root.join("cgroup.subtree_control");
        let enabled = version2 && !fs::read_to_string(&control).unwrap().contains("cpuset");
        if enabled {
            fs::write(&control, "+cpuset").unwrap();
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = root.join(format!("isoplane-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let cpuset = Self { folder, enabled: enabled.then_some(control) };
        if !version2 {
            let mems = fs::read_to_string(root.join("cpuset.mems")).unwrap();
            cpuset.write("cpuset.mems", mems.trim());
        }
        cpuset.write("cpuset.cpus", &cpus.to_string());
        Some(cpuset)
    }

    #[track_caller]
    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.join(file), text).unwrap();
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        // Processes that have ended leave their cgroup a little later.
        let start = Instant::now();
        while fs::remove_dir(&self.folder).is_err() && start.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(10));
        }
        if let Some(control) = &self.enabled {
            let _ = fs::write(control, "-cpuset");
        }
    }
}

#[test]
fn namespace_the_cpuset_is_named_and_its_shrinking_noticed() {
    const TEST: &str = "namespace_the_cpuset_is_named_and_its_shrinking_noticed";
    let Some((one, two)) = two_cpus(TEST) else { return };
    let (first, both) = (CpuList::from_iter([one]), [one, two].into_iter().collect::<CpuList>());
    let Some(cpuset) = Cpuset::new(TEST, &first) else { return };
    let mut other = Other::start();
    cpuset.write("cgroup.procs", &other.child.id().to_string());
    let refused = other.order(&format!("pin {two}"));
    let words = format!("CPU {two} is outside the cpuset of this process ({first})");
    assert!(refused.contains(&words), "{refused}");

    cpuset.write("cpuset.cpus", &both.to_string());
    other.pin(two);
    assert_eq!(other.order("watch"), "nothing");
    cpuset.write("cpuset.cpus", &first.to_string());
    let found = other.order("watch");
    assert!(found.contains(&format!("changed from outside: {two} -> {first}")), "{found}");
    let found = other.order("check");
    assert!(found.contains(&format!("moved from CPU {two} to CPU {one}")), "{found}");
    let refused = other.order("repin");
    assert!(refused.contains(&words), "{refused}");
    cpuset.write("cpuset.cpus", &both.to_string());
    assert_eq!(other.order("repin"), "in place");
    assert_eq!(other.order("check"), "in place");
    drop(other);
}

#[test]
fn namespace_a_mask_is_told_from_a_cpuset() {
    const TEST: &str = "namespace_a_mask_is_told_from_a_cpuset";
    let Some((one, two)) = two_cpus(TEST) else { return };
    let both: CpuList = [one, two].into_iter().collect();
    let Some(cpuset) = Cpuset::new(TEST, &both) else { return };
    let mut other = Other::start();
    cpuset.write("cgroup.procs", &other.child.id().to_string());
    // As "taskset -c" before it would have: the thread that obeys is the one that is pinned.
    let thread = other.pin(one);
    assert_eq!(other.order("unpin"), "unpinned");
    set_affinity(thread, &CpuList::from_iter([one])).unwrap();
    let refused = other.order(&format!("pin {two}"));
    let words =
        format!("outside the affinity mask this process was given ({one}), not outside its cpuset ({both})");
    assert!(refused.contains(&words), "{refused}");
    drop(other);
}

/// Says SKIPPED and gives false where no BPF LSM program can be had.
fn can_veto(test: &str) -> bool {
    match Veto::load() {
        Err(VetoError::Privilege { .. }) if !geteuid().is_root() => {
            eprintln!("SKIPPED {test}: needs root for BPF programs");
            false
        }
        Err(VetoError::NotEnabled { .. })
            if fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|list| list.contains("bpf")) =>
        {
            panic!("the kernel runs BPF LSM, and our program is not called");
        }
        Err(
            error @ (VetoError::NotBuilt { .. } | VetoError::NotEnabled { .. } | VetoError::Forbidden { .. }),
        ) => {
            assert!(error.to_string().contains(",bpf\""), "{error}");
            eprintln!("SKIPPED {test}: this kernel runs no BPF LSM");
            false
        }
        veto => {
            veto.unwrap();
            true
        }
    }
}

#[test]
fn namespace_the_veto_refuses_outsiders_and_nobody_else() {
    const TEST: &str = "namespace_the_veto_refuses_outsiders_and_nobody_else";
    let Some((one, two)) = two_cpus(TEST) else { return };
    if !can_veto(TEST) {
        return;
    }
    let mut other = Other::start();
    let thread = other.pin(two);
    let (wanted, both) = (CpuList::from_iter([two]), [one, two].into_iter().collect::<CpuList>());
    set_affinity(thread, &wanted).unwrap();
    assert_eq!(other.order("forbid"), "forbidden");
    for attempt in 1..=3 {
        assert_eq!(set_affinity(thread, &both), Err(nix::errno::Errno::EPERM), "root got through");
        assert_eq!(other.order("refused"), attempt.to_string());
    }
    assert_eq!(other.order("watch"), "nothing");
    assert_eq!(other.order("from within"), "Ok(())", "its own process may");
    // Another thread of that process did not ask for it: its first one, which only waits.
    let main = Pid::from_raw(other.child.id() as i32);
    assert_ne!(main, thread);
    set_affinity(main, &both).unwrap();
    // It ends with the guard, whether the program is gone with it or stays.
    assert_eq!(other.order("unpin"), "unpinned");
    set_affinity(thread, &both).unwrap();
    other.pin(two);
    assert_eq!(other.order("forbid by one that stays"), "forbidden");
    assert_eq!(set_affinity(thread, &both), Err(nix::errno::Errno::EPERM));
    assert_eq!(other.order("forbid again by the same"), "forbidden");
    assert_eq!(set_affinity(thread, &both), Err(nix::errno::Errno::EPERM));
    assert_eq!(other.order("refused"), "2", "the count went on");
    assert_eq!(other.order("unpin"), "unpinned");
    set_affinity(thread, &both).unwrap();
}

/// What the documentation of `percpu::veto` says of cgroups.
#[test]
fn namespace_the_veto_covers_a_move_between_cgroups_but_not_their_cpusets() {
    const TEST: &str = "namespace_the_veto_covers_a_move_between_cgroups_but_not_their_cpusets";
    let Some((one, two)) = two_cpus(TEST) else { return };
    if !can_veto(TEST) {
        return;
    }
    let (first, both) = (CpuList::from_iter([one]), [one, two].into_iter().collect::<CpuList>());
    let Some(home) = Cpuset::new(TEST, &both) else { return };
    let Some(elsewhere) = Cpuset::new(TEST, &first) else { return };
    let mut other = Other::start();
    let pid = other.child.id().to_string();
    home.write("cgroup.procs", &pid);
    other.pin(two);
    assert_eq!(other.order("forbid"), "forbidden");
    let error = fs::write(elsewhere.folder.join("cgroup.procs"), &pid).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EPERM as i32), "{error}");
    assert_eq!(other.order("watch"), "nothing");
    home.write("cpuset.cpus", &first.to_string());
    let found = other.order("watch");
    assert!(found.contains(&format!("changed from outside: {two} -> {first}")), "{found}");
    assert_eq!(other.order("unpin"), "unpinned");
    elsewhere.write("cgroup.procs", &pid);
    drop(other);
}
