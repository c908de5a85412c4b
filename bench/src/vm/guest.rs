//! Boots a guest and sees it to its end.
#![forbid(unsafe_code)]

use super::cpio::Archive;
use super::error::cannot;
use super::nic::{self, Nic};
use super::session::{BOOT_LIMIT, Logs, Qemu, Session};
use super::{Kit, Report, VmError, libraries, module, sys};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The guest's first process.
const INIT: &str = include_str!("../../vm/init");

/// What every guest's kernel is told. A panic ends it at once, an oops is a panic; QEMU's timers are too unsteady for the
/// kernel's checks of them. By the last word programs know that they are in here (the kernel keeps it, and ignores it).
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 oops=panic no_timer_check tsc=reliable isoplane.guest=1";

/// How often a guest is booted at most.
const BOOTS: usize = 3;
/// The kernel's word for a break point that nobody has set.
const LATE_BREAK_POINT: &str = "Oops: int3";
/// QEMU's word for a register that a CPU reached while another one moved the devices' registers about: its tables are not safe against that.
/// Most often it has no word for it, and the access is lost. Where that was the end of an interrupt, written to the local APIC's page, the CPU takes no other
/// one of that priority or below, for good: the guest never boots. The local APIC of the mode x2APIC is reached by instructions and not by memory, so a
/// guest of several CPUs with many devices is given that: by `intel-iommu,intremap=on,eim=on`, without which the kernel does not use it.
const LATE_MAP: &str = "iotlb_to_section: Assertion";
/// Where modules are put, in the guest.
const MODULES: &str = "lib/modules";

/// A guest to be booted.
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    cpus: usize,
    memory_mib: usize,
    kernel: Option<PathBuf>,
    append: Vec<String>,
    devices: Vec<String>,
    nics: Vec<Nic>,
    modules: Vec<String>,
    files: Vec<(String, PathBuf)>,
    commands: Vec<String>,
    timeout: Duration,
}

impl Guest {
    /// A guest of 2 CPUs and 512 MiB that is given a minute. Its logs go to a folder of this name in `target/vm/guests`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cpus: 2,
            memory_mib: 512,
            kernel: None,
            append: Vec::new(),
            devices: Vec::new(),
            nics: Vec::new(),
            modules: Vec::new(),
            files: Vec::new(),
            commands: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    /// Its number of CPUs, 1 to 64.
    #[must_use]
    pub fn cpus(mut self, cpus: usize) -> Self {
        self.cpus = cpus;
        self
    }

    /// Its memory, 256 to 8192 MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: usize) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Another kernel than the kit's.
    #[must_use]
    pub fn kernel(mut self, kernel: &Path) -> Self {
        self.kernel = Some(kernel.to_owned());
        self
    }

    /// More words for the kernel's command line, such as `isolcpus=1`.
    #[must_use]
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.to_owned());
        self
    }

    /// A device of QEMU's, as behind `-device`: `intel-iommu,intremap=on`.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// A NIC, as behind `-device`: `igb,addr=0x05`. Its wire leads to the test: [`Session::wire`]. NICs are numbered from 0, those on TAPs
    /// among them; the last byte of a NIC's address is its number and one. QEMU keeps places for the virtual functions of an igb: their
    /// `addr` must be below 0x10 and two apart.
    #[must_use]
    pub fn nic(mut self, model: &str) -> Self {
        self.nics.push(Nic::on_socket(model));
        self
    }

    /// A NIC whose wire is the TAP interface `interface` with this many queues, made in the network namespace `namespace` (`ip netns add`)
    /// when the guest boots, and set up; it goes with the guest. Whoever lives in there can use it, and so can the test. Needs root.
    #[must_use]
    pub fn nic_on_tap(mut self, model: &str, namespace: &str, interface: &str, queues: usize) -> Self {
        self.nics.push(Nic::on_tap(model, namespace, interface, queues));
        self
    }

    /// Loads a module of the guest's kernel before the first command, behind those it depends on: `vfio-pci`, or with parameters
    /// `vfio_iommu_type1 allow_unsafe_interrupts=1`. One that the kernel has built in needs no loading.
    #[must_use]
    pub fn module(mut self, module: &str) -> Self {
        self.modules.push(module.to_owned());
        self
    }

    /// Puts a file of the host into the guest, as an executable, with the shared libraries it names: `name` is its path without the first
    /// slash.
    #[must_use]
    pub fn file(mut self, name: &str, from: &Path) -> Self {
        self.files.push((name.to_owned(), from.to_owned()));
        self
    }

    /// Runs a line of shell, after those before it. Programs in `/bin` need no path; busybox has the usual ones.
    #[must_use]
    pub fn run(mut self, command: &str) -> Self {
        self.commands.push(command.to_owned());
        self
    }

    /// How long it may take from power-on to power-off.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Boots it, and waits until it has powered itself off.
    ///
    /// Where one of its CPUs ran into a break point that the kernel had already taken back, it is booted again: to patch its code (which
    /// every trace event that is opened does) the kernel puts one there, and QEMU, which translates code beforehand, is sometimes late. So it is
    /// where QEMU itself gave up over its map of the devices' registers, which a guest with many NICs changes while it boots, and where it never booted.
    pub fn boot(&self, kit: &Kit) -> Result<Report, VmError> {
        self.check(false)?;
        self.again_where_qemu_was_late(|| {
            let mut session = self.start(kit, false)?;
            session.wait_until_booted(BOOT_LIMIT)?;
            session.finish()
        })
    }

    /// Boots it, and when it has run its commands, runs those that `talk` asks for: see [`Session`]. Where it is booted again (see
    /// [`boot`](Self::boot)), `talk` begins anew.
    pub fn converse<T>(
        &self,
        kit: &Kit,
        mut talk: impl FnMut(&mut Session) -> Result<T, VmError>,
    ) -> Result<(T, Report), VmError> {
        self.check(true)?;
        self.again_where_qemu_was_late(|| {
            let mut session = self.start(kit, true)?;
            session.wait_until_booted(BOOT_LIMIT)?;
            session.wait_until_ready()?;
            let said = talk(&mut session)?;
            session.dismiss()?;
            Ok((said, session.finish()?))
        })
    }

    fn again_where_qemu_was_late<T>(
        &self,
        mut boot: impl FnMut() -> Result<T, VmError>,
    ) -> Result<T, VmError> {
        for _ in 1..BOOTS {
            match boot() {
                Err(VmError::Panicked { console, .. }) if console.contains(LATE_BREAK_POINT) => {
                    eprintln!("guest {}: QEMU was late with patched code: booted again", self.name);
                }
                // Its CPUs all sleep: see above.
                Err(VmError::NotBooted { limit, .. }) => {
                    eprintln!("guest {}: not booted after {limit:?}: booted again", self.name);
                }
                Err(VmError::Ended { console, .. }) if console.contains(LATE_MAP) => {
                    eprintln!("guest {}: QEMU was late with moved registers: booted again", self.name);
                }
                result => return result,
            }
        }
        boot()
    }

    fn start(&self, kit: &Kit, talks: bool) -> Result<Session, VmError> {
        let deadline = Instant::now() + self.timeout;
        let logs = Logs::prepare(&self.name, kit.logs(&self.name))?;
        let initramfs = logs.folder.join("initramfs");
        fs::write(&initramfs, self.initramfs(kit, talks)?).map_err(cannot("write", &initramfs))?;
        let (serial, theirs) = UnixStream::pair().map_err(cannot("make a socket for", &logs.results))?;
        let mut inherited = vec![OwnedFd::from(theirs)];
        let results = format!("socket,id=results,fd={},logfile=", inherited[0].as_raw_fd());

        let mut qemu = kit.qemu();
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            // Not KVM, even where there is one: stock kernels die or hang under nested virtualisation.
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .args(["-serial", &named("file:", &logs.console)])
            .args(["-chardev", &named(&results, &logs.results), "-serial", "chardev:results"])
            .arg("-kernel")
            .arg(self.kernel_file(kit))
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &format!("{COMMAND_LINE} {} {}", clock(), self.append.join(" "))]);
        for device in &self.devices {
            qemu.args(["-device", device]);
        }
        let mut ends = Vec::new();
        for (index, nic) in self.nics.iter().enumerate() {
            let plugged = nic.plug(index)?;
            qemu.args(plugged.arguments);
            inherited.extend(plugged.inherited);
            ends.push(plugged.end);
        }
        let complaints = File::create(&logs.complaints).map_err(cannot("write", &logs.complaints))?;
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints);
        sys::prepare(&mut qemu, inherited);
        Ok(Session::new(logs, Qemu::start(qemu)?, serial, ends, (deadline, self.timeout)))
    }

    fn kernel_file(&self, kit: &Kit) -> PathBuf {
        self.kernel.clone().unwrap_or_else(|| kit.kernel())
    }

    /// Refuses what would only show as a strange failure later.
    fn check(&self, talks: bool) -> Result<(), VmError> {
        let refuse = |what: String| Err(VmError::Invalid(what));
        let plain = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        if !plain(&self.name) {
            return refuse(format!("the name {:?}: letters, digits, - and _ only", self.name));
        }
        if !(1..=64).contains(&self.cpus) {
            return refuse(format!("{} CPUs: 1 to 64", self.cpus));
        }
        if !(256..=8192).contains(&self.memory_mib) {
            return refuse(format!("{} MiB of memory: 256 to 8192", self.memory_mib));
        }
        if self.commands.is_empty() && !talks {
            return refuse("nothing to run: give it a command".to_owned());
        }
        if let Some(line) = self.commands.iter().chain(&self.append).find(|text| text.contains('\n')) {
            return refuse(format!("{line:?}: one line each"));
        }
        // More than QEMU has fixed names for, and its machine slots.
        if self.nics.len() > 16 {
            return refuse(format!("{} NICs: 16 at most", self.nics.len()));
        }
        match self.files.iter().find(|(name, _)| name.split('/').any(|part| part.is_empty() || part == ".."))
        {
            Some((name, _)) => refuse(format!("a file {name:?}: its path begins without a slash")),
            None => Ok(()),
        }
    }

    fn initramfs(&self, kit: &Kit, talks: bool) -> Result<Vec<u8>, VmError> {
        let kernel = self.kernel_file(kit);
        let modules = module::resolve(kernel.parent().unwrap_or(&kernel), &kit.busybox(), &self.modules)?;
        let mut archive = Archive::default();
        archive.file("init", INIT.as_bytes());
        let mut commands = String::new();
        for module in &modules {
            let file = format!("{MODULES}/{}.ko", module.name);
            archive.file(&file, &module.bytes);
            commands += &format!("insmod /{file} {}\n", module.parameters);
        }
        for command in &self.commands {
            commands += &format!("{command}\n");
        }
        archive.file("commands", commands.as_bytes());
        if talks {
            archive.file("talks", &[]);
        }
        let busybox = ("bin/busybox".to_owned(), kit.busybox());
        for (name, from) in [busybox].iter().chain(&self.files) {
            archive.file(name, &fs::read(from).map_err(cannot("read", from))?);
        }
        let mut added = BTreeSet::new();
        for (_, from) in &self.files {
            for library in libraries::of(from)? {
                let name = library.to_string_lossy().trim_start_matches('/').to_owned();
                if added.insert(name.clone()) {
                    archive.file(&name, &fs::read(&library).map_err(cannot("read", &library))?);
                }
            }
        }
        Ok(archive.finish())
    }

    /// The address of NIC number `index`.
    pub fn mac(index: usize) -> [u8; 6] {
        nic::mac(index)
    }
}

/// The rate of the time stamp counter, for the kernel's command line. A guest has the host's counter; where it measured the rate by itself on a busy host, its
/// clock ran five times too fast, and what was to take 20 s ended after 4.
fn clock() -> String {
    format!("tsc_early_khz={}", percpu::tsc::frequency_hz() / 1000)
}

/// QEMU's way to name a file, with the comma doubled, which would end the name.
fn named(what: &str, path: &Path) -> String {
    what.to_owned() + &path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_guests_are_refused_in_words() {
        let good = || Guest::new("good").run("true");
        assert!(good().check(false).is_ok());
        // It is told later.
        assert!(Guest::new("good").check(true).is_ok());
        for (guest, words) in [
            (Guest::new("good"), "give it a command"),
            (Guest::new("a/b").run("true"), "letters, digits"),
            (good().cpus(0), "0 CPUs: 1 to 64"),
            (good().memory_mib(64), "256 to 8192"),
            (good().run("a\nb"), "one line each"),
            (good().append("a\nb"), "one line each"),
            (good().file("/bin/x", Path::new("x")), "without a slash"),
            (good().file("bin/../x", Path::new("x")), "without a slash"),
        ] {
            let error = guest.check(false).unwrap_err().to_string();
            assert!(error.contains(words) && error.lines().count() == 1, "{error}");
        }
    }
}
