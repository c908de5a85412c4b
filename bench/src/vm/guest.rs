//! Boots a guest and sees it to its end.
#![forbid(unsafe_code)]

use super::cpio::Archive;
use super::report::{End, Remains};
use super::{Kit, Report, VmError, libraries, sys};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
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

/// How often to look whether QEMU has ended.
const POLL: Duration = Duration::from_millis(20);

/// A guest to be booted.
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    cpus: usize,
    memory_mib: usize,
    kernel: Option<PathBuf>,
    append: Vec<String>,
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
    /// every trace event that is opened does) the kernel puts one there, and QEMU, which translates code beforehand, is sometimes late.
    pub fn boot(&self, kit: &Kit) -> Result<Report, VmError> {
        self.check()?;
        for _ in 1..BOOTS {
            match self.boot_once(kit) {
                Err(VmError::Panicked { console, .. }) if console.contains(LATE_BREAK_POINT) => {
                    eprintln!("guest {}: QEMU was late with patched code: booted again", self.name);
                }
                result => return result,
            }
        }
        self.boot_once(kit)
    }

    fn boot_once(&self, kit: &Kit) -> Result<Report, VmError> {
        let logs = kit.logs(&self.name);
        fs::create_dir_all(&logs).map_err(cannot("make", &logs))?;
        let path = |name| logs.join(name);
        let (initramfs, console, results, complaints) =
            (path("initramfs"), path("console"), path("results"), path("qemu"));
        fs::write(&initramfs, self.initramfs(kit)?).map_err(cannot("write", &initramfs))?;
        for log in [&console, &results] {
            fs::write(log, "").map_err(cannot("write", log))?;
        }

        let mut qemu = kit.qemu();
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            // Not KVM, even where there is one: stock kernels die or hang under nested virtualisation.
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .arg("-serial")
            .arg(file_backend(&console))
            .arg("-serial")
            .arg(file_backend(&results))
            .arg("-kernel")
            .arg(self.kernel.clone().unwrap_or_else(|| kit.kernel()))
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &format!("{COMMAND_LINE} {}", self.append.join(" "))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&complaints).map_err(cannot("write", &complaints))?);
        let end = Qemu::start(qemu)?.wait(self.timeout).map_err(cannot("wait for", &complaints))?;

        let text = |log: &Path| {
            let bytes = fs::read(log).map_err(cannot("read", log))?;
            Ok::<_, VmError>(String::from_utf8_lossy(&bytes).into_owned())
        };
        Remains {
            guest: &self.name,
            end,
            console: text(&console)? + &text(&complaints)?,
            results: text(&results)?,
            logs: &logs,
        }
        .judge()
    }

    /// Refuses what would only show as a strange failure later.
    fn check(&self) -> Result<(), VmError> {
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
        if self.commands.is_empty() {
            return refuse("nothing to run: give it a command".to_owned());
        }
        if let Some(line) = self.commands.iter().chain(&self.append).find(|text| text.contains('\n')) {
            return refuse(format!("{line:?}: one line each"));
        }
        match self.files.iter().find(|(name, _)| name.split('/').any(|part| part.is_empty() || part == ".."))
        {
            Some((name, _)) => refuse(format!("a file {name:?}: its path begins without a slash")),
            None => Ok(()),
        }
    }

    fn initramfs(&self, kit: &Kit) -> Result<Vec<u8>, VmError> {
        let mut archive = Archive::default();
        archive.file("init", INIT.as_bytes());
        archive.file("commands", format!("{}\n", self.commands.join("\n")).as_bytes());
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
}

/// QEMU's `file:` with the comma doubled, which would end the name.
fn file_backend(path: &Path) -> String {
    format!("file:{}", path.display()).replace(',', ",,")
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmError {
    let path = path.to_owned();
    move |source| VmError::File { action, path, source }
}

/// A running QEMU, which ends with this, or with the thread that started it.
struct Qemu(Child);

impl Qemu {
    fn start(mut command: Command) -> Result<Self, VmError> {
        sys::die_with_us(&mut command);
        command.spawn().map(Self).map_err(cannot("start", Path::new(command.get_program())))
    }

    /// Waits until it has ended, and kills it where that takes too long.
    fn wait(mut self, limit: Duration) -> io::Result<End> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(End::Exited(status.to_string()));
            }
            if Instant::now() >= deadline {
                return Ok(End::Killed(limit));
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only where it has already ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_guests_are_refused_in_words() {
        let good = || Guest::new("good").run("true");
        assert!(good().check().is_ok());
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
            let error = guest.check().unwrap_err().to_string();
            assert!(error.contains(words) && error.lines().count() == 1, "{error}");
        }
    }
}
