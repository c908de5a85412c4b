//! A guest while it runs: the test has it run one command after another, and meanwhile sends frames into its NICs.
#![forbid(unsafe_code)]

use super::error::cannot;
use super::report::{End, Remains};
use super::wire::{self, Wire};
use super::{Report, VmError};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

/// How often to look whether QEMU has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long it may take to end when its serial lines are closed.
const LAST_GASP: Duration = Duration::from_secs(5);
/// How long it may take until its first process runs: four seconds on a machine with nothing else to do, 16 where five others want its two CPUs.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(40);
/// What a terminal takes as one line.
const LONGEST_LINE: usize = 4000;

/// Where a guest's words go.
pub(super) struct Logs {
    pub(super) guest: String,
    pub(super) folder: PathBuf,
    /// The first serial line.
    pub(super) console: PathBuf,
    /// The second.
    pub(super) results: PathBuf,
    /// What QEMU itself has to say.
    pub(super) complaints: PathBuf,
}

impl Logs {
    /// Makes the folder, and empties what is in it.
    pub(super) fn prepare(guest: &str, folder: PathBuf) -> Result<Self, VmError> {
        fs::create_dir_all(&folder).map_err(cannot("make", &folder))?;
        let [console, results, complaints] = ["console", "results", "qemu"].map(|name| folder.join(name));
        for log in [&console, &results] {
            fs::write(log, "").map_err(cannot("write", log))?;
        }
        Ok(Self { guest: guest.to_owned(), folder, console, results, complaints })
    }
}

/// A running QEMU, which ends with this, or with the thread that started it.
pub(super) struct Qemu(Child);

impl Qemu {
    pub(super) fn start(mut command: Command) -> Result<Self, VmError> {
        command.spawn().map(Self).map_err(cannot("start", Path::new(command.get_program())))
    }

    /// Waits until it has ended; `None` where it has not by then.
    fn wait(&mut self, deadline: Instant) -> io::Result<Option<String>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status.to_string()));
            }
            if Instant::now() >= deadline {
                return Ok(None);
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

/// A running guest, which ends with this. All that it is asked for ends by the guest's time limit.
pub struct Session {
    logs: Logs,
    qemu: Qemu,
    /// The second serial line.
    serial: UnixStream,
    /// All that came by it.
    heard: Vec<u8>,
    /// How much of that has been looked at.
    read: usize,
    ends: Vec<wire::End>,
    deadline: Instant,
    limit: Duration,
}

impl Session {
    pub(super) fn new(
        logs: Logs,
        qemu: Qemu,
        serial: UnixStream,
        ends: Vec<wire::End>,
        (deadline, limit): (Instant, Duration),
    ) -> Self {
        Self { logs, qemu, serial, heard: Vec::new(), read: 0, ends, deadline, limit }
    }

    /// Has the guest run a line of shell to its end, and gives the lines that it printed. What it leaves in the background goes on.
    pub fn run(&mut self, command: &str) -> Result<Vec<String>, VmError> {
        if command.contains('\n') || command.len() > LONGEST_LINE {
            return Err(VmError::Invalid(format!("{command:?}: one line of {LONGEST_LINE} bytes at most")));
        }
        self.say(command)?;
        let mut printed = Vec::new();
        loop {
            let line = self.line()?;
            let ended = line.strip_prefix("EXIT ").and_then(|rest| rest.strip_suffix(command.trim()));
            match ended.map(str::trim) {
                None => printed.push(line),
                Some("0") => return Ok(printed),
                Some(_) => return Err(self.account(End::Exited("not at all".to_owned()))),
            }
        }
    }

    /// The test's side of two of its NICs, by their numbers.
    pub fn wire(&self, first: usize, second: usize) -> Result<Wire, VmError> {
        let end = |index: usize| {
            let end = self.ends.get(index);
            let end = end.ok_or_else(|| VmError::Invalid(format!("a wire to NIC {index}: it has none")))?;
            end.try_clone().map_err(cannot("duplicate the socket of", Path::new("a NIC")))
        };
        Ok(Wire::new(end(first)?, end(second)?))
    }

    /// Waits until its first process runs, at most for `limit`, which is no extension of the guest's own time.
    pub(super) fn wait_until_booted(&mut self, limit: Duration) -> Result<(), VmError> {
        let deadline = self.deadline;
        self.deadline = deadline.min(Instant::now() + limit);
        let booted = self.wait_for("BOOTED").map_err(|error| match error {
            VmError::TimedOut { guest, console, .. } if self.deadline < deadline => {
                VmError::NotBooted { guest, limit, console }
            }
            error => error,
        });
        self.deadline = deadline;
        booted
    }

    /// Waits until it has run the commands it was given beforehand.
    pub(super) fn wait_until_ready(&mut self) -> Result<(), VmError> {
        self.wait_for("READY")
    }

    fn wait_for(&mut self, word: &str) -> Result<(), VmError> {
        while self.line()? != word {}
        Ok(())
    }

    /// Lets it end.
    pub(super) fn dismiss(&mut self) -> Result<(), VmError> {
        self.say("BYE")
    }

    /// Waits until it has ended, and gives account of it.
    pub(super) fn finish(mut self) -> Result<Report, VmError> {
        let end = self.end()?;
        self.judge(end)
    }

    fn say(&mut self, line: &str) -> Result<(), VmError> {
        match self.serial.write_all(format!("{line}\n").as_bytes()) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why_it_hung_up()),
        }
    }

    /// The next line on the second serial line, without its end.
    fn line(&mut self) -> Result<String, VmError> {
        loop {
            if let Some(length) = self.heard[self.read..].iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.heard[self.read..self.read + length]);
                let line = line.trim_end().to_owned();
                self.read += length + 1;
                return Ok(line);
            }
            match self.more()? {
                More::Bytes => {}
                More::HungUp => return Err(self.why_it_hung_up()),
                More::TimedOut => return Err(self.account(End::Killed(self.limit))),
            }
        }
    }

    fn more(&mut self) -> Result<More, VmError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(More::TimedOut);
        }
        let mut buffer = [0; 4096];
        let read = self.serial.set_read_timeout(Some(left)).and_then(|()| self.serial.read(&mut buffer));
        match read {
            Ok(0) => Ok(More::HungUp),
            Ok(length) => {
                self.heard.extend_from_slice(&buffer[..length]);
                Ok(More::Bytes)
            }
            // Whether time is up, the next call knows.
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                Ok(More::Bytes)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(More::HungUp),
            Err(error) => Err(cannot("read", &self.logs.results)(error)),
        }
    }

    /// Hears it out, and waits for QEMU's end.
    fn end(&mut self) -> Result<End, VmError> {
        loop {
            match self.more()? {
                More::Bytes => {}
                More::TimedOut => return Ok(End::Killed(self.limit)),
                More::HungUp => break,
            }
        }
        let deadline = self.deadline.max(Instant::now() + LAST_GASP);
        let status = self.qemu.wait(deadline).map_err(cannot("wait for", &self.logs.complaints))?;
        Ok(status.map_or(End::Killed(self.limit), End::Exited))
    }

    fn why_it_hung_up(&mut self) -> VmError {
        match self.end() {
            Ok(end) => self.account(end),
            Err(error) => error,
        }
    }

    /// Why it does not do what it is asked for.
    fn account(&self, end: End) -> VmError {
        match self.judge(end) {
            Err(error) => error,
            // It said that it was done, when it had more to do.
            Ok(report) => VmError::Ended {
                guest: self.logs.guest.clone(),
                status: "before it was told to".to_owned(),
                console: format!("  all of it: {}", report.logs.display()),
            },
        }
    }

    /// What is to be made of all that it left.
    fn judge(&self, end: End) -> Result<Report, VmError> {
        let text = |log: &Path| {
            let bytes = fs::read(log).map_err(cannot("read", log))?;
            Ok::<_, VmError>(String::from_utf8_lossy(&bytes).into_owned())
        };
        Remains {
            guest: &self.logs.guest,
            end,
            console: text(&self.logs.console)? + &text(&self.logs.complaints)?,
            results: String::from_utf8_lossy(&self.heard).into_owned(),
            logs: &self.logs.folder,
        }
        .judge()
    }
}

/// What became of waiting for more on the serial line.
enum More {
    /// Some came, or may still come.
    Bytes,
    /// QEMU has closed it.
    HungUp,
    /// The guest's time is up.
    TimedOut,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder(seconds: u64) -> PathBuf {
        std::env::temp_dir().join(format!("isoplane-session-{}-{seconds}", std::process::id()))
    }

    /// A guest that says this at once, and nothing more; it is given so many seconds.
    fn says(words: &str, seconds: u64) -> (Session, UnixStream) {
        let logs = Logs::prepare("g", folder(seconds)).unwrap();
        fs::write(&logs.complaints, "").unwrap();
        let mut qemu = Command::new("sleep");
        let qemu = Qemu::start({
            qemu.arg("100");
            qemu
        });
        let (serial, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(words.as_bytes()).unwrap();
        let limit = Duration::from_secs(seconds);
        let deadline = (Instant::now() + limit, limit);
        (Session::new(logs, qemu.unwrap(), serial, Vec::new(), deadline), theirs)
    }

    #[test]
    fn a_guest_boots_in_time_or_not_at_all() {
        let short = Duration::from_millis(20);
        let (mut session, _serial) = says("BOOTED\r\nEXIT 0 insmod\r\nREADY\r\n", 100);
        session.wait_until_booted(short).unwrap();
        session.wait_until_ready().unwrap();
        assert!(session.deadline > Instant::now() + short, "that limit was for booting");
        let (mut session, _serial) = says("", 101);
        let error = session.wait_until_booted(short).unwrap_err();
        assert!(matches!(&error, VmError::NotBooted { limit, .. } if *limit == short), "{error}");
        // Its own time was up before: nobody would boot it again.
        let (mut session, _serial) = says("", 0);
        let error = session.wait_until_booted(Duration::from_secs(100)).unwrap_err();
        assert!(matches!(error, VmError::TimedOut { .. }), "{error}");
        for seconds in [100, 101, 0] {
            fs::remove_dir_all(folder(seconds)).unwrap();
        }
    }
}
