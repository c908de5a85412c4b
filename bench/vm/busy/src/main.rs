//! A run in which everything but the worker is busy: jobs on the slow path that block, compute, fill the heap and empty the packet memory; packets to the
//! kernel and back by a TAP; a table that clients replace. And the clients. In a guest whose worker is isolated, none of it may reach that.
#![forbid(unsafe_code)]

mod clients;
mod forward;
mod outside;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A run whose control core is busy, and the clients that keep it so
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Forwards between two ports, with jobs beside
    Forward(Box<forward::Args>),
    /// Asks and changes things of such a run, until it ends
    Clients(clients::Args),
    /// Opens a NIC that finds no packet memory, and sends by it
    Outside(outside::Args),
}

fn main() -> ExitCode {
    apps::run(|args: Args| match args.command {
        Command::Forward(args) => forward::run(args),
        Command::Clients(args) => clients::run(&args),
        Command::Outside(args) => outside::run(&args),
    })
}
