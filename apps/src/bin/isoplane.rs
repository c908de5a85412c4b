//! isoplane: what can disturb a worker on this machine, and how to change it and put it back; and what a run counts while it goes on.
//!
//! `check` looks and changes nothing. `prepare` changes what can be changed while the machine runs, and keeps the old values in a file;
//! `restore` puts them back, and the NICs that a killed run has left. `nics` lists those there are. `ctl` asks a run by its socket (docs/live-control.md). docs/isolation-host.md explains each condition, the file, and the exit statuses.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use isolation::host::{self, Host, HostError, Note, Options, StateFile, Undone};
use percpu::CpuList;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Columns of the table of `check`.
const COLUMNS: usize = 100;

/// Checks and prepares this machine for workers that the kernel is to leave alone
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = false,
    after_help = "Begin with \"isoplane check\": it needs no privilege, and changes nothing."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Report every condition that can disturb a worker, what it costs, and what mends it
    #[command(
        after_help = "Exit status: 0 when all is ok, 1 when something costs you or cannot be known, 2 when the options are wrong."
    )]
    Check(Check),
    /// Change what can be changed while the machine runs, and remember the old values
    #[command(
        after_help = "It moves interrupts, work of the kernel and watchdogs away from the CPUs, and stops what touches memory or lets them sleep. Every old value is on the disk before the first one changes.\n\nExit status: 0 when prepared (what this kernel refuses is listed), 1 when not, 2 when the options are wrong."
    )]
    Prepare(Prepare),
    /// Put back what prepare changed and the NICs that a killed run took, also after a crash
    #[command(
        after_help = "What somebody else has changed since is named and left alone, and so is a NIC that a living run has. Without anything to restore it does nothing.\n\nExit status: 0 when all is as before, 1 when something is not (it is named, and stays in its state file), 2 when the options are wrong."
    )]
    Restore(Restore),
    /// Ask a run that goes on for its numbers, or change something of it
    #[command(
        arg_required_else_help = false,
        after_help = "The run is one that was started with --ctl SOCKET. docs/live-control.md has the protocol.\n\nExit status: 0 when answered, 1 when the run refuses or cannot be reached, 2 when the options are wrong."
    )]
    Ctl(apps::ctl::Ctl),
    /// List the Ethernet devices of this machine, who has them, and what port each can be
    #[command(
        after_help = "It needs no privilege, and changes nothing. docs/vfio-binding.md explains what can keep a device from being a vfio: port.\n\nExit status: 0."
    )]
    Nics(apps::nics::Nics),
}

#[derive(Args)]
struct Check {
    /// CPUs that workers run on, such as 1-3,5 [default: those that the kernel isolates, else all of this process but the first]
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Prepare {
    /// CPUs that workers will run on, such as 1-3,5
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,

    /// Show what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Let real-time tasks have all of a CPU: one that does not end takes it for good
    #[arg(long)]
    rt: bool,

    /// Make the CPUs an isolated partition of cgroup v2: only processes in the cgroup "isoplane" run there
    #[arg(long)]
    partition: bool,

    /// Keep the old values in this file
    #[arg(long, value_name = "FILE", default_value = "/run/isoplane/prepared.json")]
    state: PathBuf,
}

#[derive(Args)]
struct Restore {
    /// Put the old values back even where somebody else has changed them since
    #[arg(long)]
    force: bool,

    /// The file that prepare kept the old values in
    #[arg(long, value_name = "FILE", default_value = "/run/isoplane/prepared.json")]
    state: PathBuf,
}

/// Errors of the command line have an exit status of their own.
fn explain(error: HostError) -> anyhow::Error {
    if error.is_usage() { dataplane::Error::Configuration(error.to_string()).into() } else { error.into() }
}

fn state_file(path: PathBuf) -> StateFile {
    let default = StateFile::default();
    if path == default.path() { default } else { StateFile::at(path) }
}

/// A reader that went away (head, less) ends the output, not the command.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn check(options: Check) -> Result<bool> {
    let host = Host::default();
    let cpus = host::to_check(&host, options.cpus.as_ref()).map_err(explain)?;
    let report = host::check(&host, &cpus);
    if options.json {
        print(&format!("{}\n", report.json()?));
    } else {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        print(&report.table(COLUMNS, colour));
    }
    Ok(report.is_ok())
}

fn print_notes(notes: &[Note]) {
    for note in notes {
        print(&format!("  not changed: {}: {}\n", note.what, note.why));
    }
}

fn prepare(options: Prepare) -> Result<bool> {
    let (host, file) = (Host::default(), state_file(options.state));
    let chosen = Options { rt: options.rt, partition: options.partition };
    // No default: what is taken from everybody else is to be said.
    let cpus = options.cpus.unwrap_or_default();
    let plan = host::plan(&host, &cpus, chosen).map_err(explain)?;
    if options.dry_run {
        let count = plan.changes.len();
        print(&format!("would change {count} setting{}\n", if count == 1 { "" } else { "s" }));
        plan.changes.iter().for_each(|change| print(&format!("  {change}\n")));
        print_notes(&plan.notes);
        return Ok(true);
    }
    let planned = plan.changes.len();
    let outcome = host::prepare(&host, plan, &file).map_err(explain)?;
    outcome.changes.iter().for_each(|change| print(&format!("  {change}\n")));
    print_notes(&outcome.notes);
    match outcome.changes.len() {
        0 if planned > 0 => print("nothing could be changed: is /proc/sys read-only, as in a container?\n"),
        0 => print("nothing was to be changed\n"),
        count => print(&format!(
            "{count} setting{} changed; \"isoplane restore{}\" puts all back from {}\n",
            if count == 1 { "" } else { "s" },
            file.option(),
            file.path().display()
        )),
    }
    Ok(planned == 0 || !outcome.changes.is_empty())
}

fn restore(options: Restore) -> Result<bool> {
    let (host, file) = (Host::default(), state_file(options.state));
    let restored = host::restore(&host, &file, options.force);
    if let Err(error @ HostError::NotRoot { .. }) = restored {
        return Err(explain(error));
    }
    // A state file of prepare's that cannot be read keeps no NIC from its driver.
    let nics = nic::pci::restore();
    print(&apps::nics::restored(&nics));
    let nics_done = nics.iter().all(|nic| nic.is_done);
    let restored = restored.map_err(explain)?;
    if restored.rebooted {
        print("the machine was booted since it was prepared: nothing is left to restore\n");
        return Ok(nics_done);
    }
    for (change, undone) in &restored.changes {
        let what = change.what();
        match undone {
            Undone::Back | Undone::Already => (),
            Undone::Gone => print(&format!("  gone: {what}\n")),
            Undone::Foreign { found } => {
                print(&format!("  left alone: {what}: somebody else has changed it since, to {found}\n"))
            }
            Undone::Refused { why } => print(&format!("  not restored: {what}: {why}\n")),
        }
    }
    let (count, left) = (restored.changes.len(), restored.left().count());
    match (count, left) {
        (0, _) if nics.is_empty() => print("nothing to restore\n"),
        (0, _) => {}
        (_, 0) => print(&format!("{count} setting{} as before\n", if count == 1 { " is" } else { "s are" })),
        _ => {
            let foreign = restored.left().any(|(_, undone)| matches!(undone, Undone::Foreign { .. }));
            print(&format!(
                "{} of {count} settings as before, {left} not: {}\n",
                count - left,
                file.path().display()
            ));
            if foreign {
                print(&format!(
                    "\"isoplane restore --force{}\" puts the old values back all the same; to keep the new ones, remove that file\n",
                    file.option()
                ));
            }
        }
    }
    Ok(left == 0 && nics_done)
}

fn main() -> ExitCode {
    let mut good = true;
    let status = apps::run(|arguments: Arguments| {
        good = match arguments.command {
            Command::Check(options) => check(options),
            Command::Prepare(options) => prepare(options),
            Command::Restore(options) => restore(options),
            Command::Nics(options) => apps::nics::run(&options).map(|text| print(&text)).map(|()| true),
            Command::Ctl(options) => apps::ctl::run(&options).map(|text| print(&text)).map(|()| true),
        }?;
        Ok(())
    });
    if good { status } else { ExitCode::from(1) }
}
