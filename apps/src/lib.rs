//! What the binaries share: how a run starts and how it ends.
#![forbid(unsafe_code)]

pub mod ctl;
pub mod nics;
pub mod pktgen;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Runs an application's main function with its arguments parsed and logging set up; prints its error as one line and
/// turns it into the exit status: 2 where the command line is to blame, else 1.
pub fn run<Args: Parser>(main: impl FnOnce(Args) -> anyhow::Result<()>) -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // --help and --version; a reader that went away is no error.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            return ExitCode::from(2);
        }
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("ISOPLANE_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .without_time()
        // Last: what is set behind it, it would not know.
        .with_env_filter(filter)
        .with_filter_reloading();
    let filter = log.reload_handle();
    dataplane::telemetry::change_log_level_by(move |level| {
        let new = tracing_subscriber::EnvFilter::new(level.name());
        filter.reload(new).map_err(|error| format!("the log level cannot be changed: {error}"))
    });
    log.init();
    match main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The words of an error hold those of its cause.
            eprintln!("error: {error}");
            ExitCode::from(error.downcast_ref::<dataplane::Error>().map_or(1, dataplane::Error::exit_status))
        }
    }
}

/// A parser's error without the usage that clap prints below it: what is wrong, and what to type.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let problem = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    if let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    {
        return format!("{} is missing (--help lists the options)", missing.join(" "));
    }
    let suggested =
        [ContextKind::SuggestedArg, ContextKind::SuggestedValue, ContextKind::SuggestedSubcommand];
    match suggested.into_iter().find_map(|kind| error.get(kind)) {
        Some(ContextValue::String(known)) => format!("{problem}: did you mean {known}?"),
        Some(ContextValue::Strings(known)) => format!("{problem}: did you mean {}?", known.join(" or ")),
        _ => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(known)) if !known.is_empty() => {
                format!("{problem}: choose {}", known.join(", "))
            }
            _ => format!("{problem} (--help lists the options)"),
        },
    }
}

/// The README's program, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
