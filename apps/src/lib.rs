//! What the binaries share: how a run starts and how it ends.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

/// Runs an application's main function with logging set up; prints its error as one line and turns it into the exit
/// status: 2 where the command line is to blame, else 1.
pub fn run(main: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("ISOPLANE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .without_time()
        .init();
    match main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(error.downcast_ref::<dataplane::Error>().map_or(1, dataplane::Error::exit_status))
        }
    }
}
