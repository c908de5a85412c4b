//! `isoplane ctl`: asks a run that goes on, or tells it something, by its `--ctl` socket. docs/live-control.md describes it.
//!
//! Its numbers are those of the run's registry; here they are only put into columns.
#![forbid(unsafe_code)]

mod connection;
mod tables;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use connection::Connection;
use dataplane::telemetry::LogLevel;
use dataplane::telemetry::protocol::{Answer, ApplicationSetting, PortSetting, Request, Setting, Subject};
use std::path::PathBuf;

/// The options of `isoplane ctl`.
#[derive(Args)]
pub struct Ctl {
    /// The socket that the run was given by --ctl
    #[arg(long, value_name = "SOCKET", default_value = "/run/isoplane.sock", global = true)]
    socket: PathBuf,

    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show numbers of the run
    Show {
        /// Of what
        subject: Subject,
    },
    /// Change something
    #[command(subcommand, arg_required_else_help = false)]
    Set(Set),
}

#[derive(Subcommand)]
enum Set {
    /// Take a port out of use, or back: what comes to one that is down is dropped as admin_down
    Port {
        /// The port's number
        number: usize,
        /// What it is to be
        state: PortState,
    },
    /// How much the run logs
    LogLevel {
        /// From nothing to everything
        level: LogLevel,
    },
    /// Which ports l2fwd forwards between, from the workers' next turn on
    Portmap {
        /// All pairs of ports, such as "(0,1)(2,3)"
        pairs: String,
    },
    /// Something of the application's own, as "show settings" lists it
    App {
        /// Its name
        name: String,
        /// What it is to be
        text: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum PortState {
    /// In use
    Up,
    /// Out of use
    Down,
}

impl Command {
    fn request(&self) -> Request {
        let application = |name: &str, text: &str| {
            Setting::Application(ApplicationSetting { name: name.to_owned(), text: text.to_owned() })
        };
        Request::Set(match self {
            Self::Show { subject } => return Request::Show(*subject),
            Self::Set(Set::Port { number, state }) => {
                Setting::Port(PortSetting { number: *number, up: matches!(state, PortState::Up) })
            }
            Self::Set(Set::LogLevel { level }) => Setting::LogLevel(*level),
            Self::Set(Set::Portmap { pairs }) => application("portmap", pairs),
            Self::Set(Set::App { name, text }) => application(name, text),
        })
    }
}

/// Asks, and gives what is to be printed.
pub fn run(options: &Ctl) -> Result<String> {
    let line = Connection::open(&options.socket)?.ask(&options.command.request())?;
    match (serde_json::from_str(&line), options.json) {
        (Ok(Answer::Error(words)), _) => bail!("{}: {words}", options.socket.display()),
        // As it came: of a newer run it may say more than is known here.
        (Ok(_), true) => Ok(line),
        (Ok(answer), false) => Ok(tables::text(&answer)),
        (Err(error), _) => bail!("{}: this is no answer of isoplane's: {error}", options.socket.display()),
    }
}
