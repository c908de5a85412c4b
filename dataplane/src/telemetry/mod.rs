//! What can be asked of a run, and told to it, while it goes on: `--ctl SOCKET` for `isoplane ctl`, `--metrics ADDRESS:PORT` for Prometheus.
//!
//! A thread of its own serves both, on the control core's CPU. Not the control core's own thread, whose table a slow terminal can hold up, and which
//! must never wait for a client. It reads the counters where the workers write them; what only the control core knows (links, violations), the
//! control core puts into the `View` ten times a second. Neither waits for the other, and no worker learns that anyone asked.
//!
//! It lives in isolated workers' address space: its thread, its connections' buffers and its descriptors' table are made before they
//! enter, and its memory is the heap that isolation keeps as it is. A client costs a worker nothing.
#![forbid(unsafe_code)]

mod client;
mod http;
mod log_level;
mod metrics;
pub mod protocol;
mod server;
mod settings;
mod socket_file;
mod view;

pub use log_level::{LogLevel, change_log_level_by};
pub(crate) use view::View;

use crate::arguments::DataplaneArgs;
use crate::error::Error;
use crate::registry::Registry;
use nic::Pool;
use server::{Limits, Server};
use settings::Settings;
use socket_file::SocketFile;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The sockets that clients come by, bound, and not served yet.
#[derive(Default)]
pub(crate) struct Endpoints {
    /// What the application lets them change.
    pub(crate) settings: Settings,
    ctl: Option<SocketFile>,
    metrics: Option<TcpListener>,
}

impl Endpoints {
    /// Binds what was asked for.
    pub(crate) fn open(args: &DataplaneArgs) -> Result<Self, Error> {
        let ctl = args.ctl.as_deref().map(SocketFile::bind).transpose()?;
        let metrics = match args.metrics {
            Some(address) => {
                let bound = TcpListener::bind(address).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok((listener.local_addr()?, listener))
                });
                let (address, listener) = bound.map_err(|error| {
                    Error::Endpoint(format!("--metrics {address}: {error}; choose another address or port"))
                })?;
                tracing::info!("metrics: http://{address}/metrics");
                Some(listener)
            }
            None => None,
        };
        Ok(Self { settings: Settings::default(), ctl, metrics })
    }

    /// Starts the thread that serves them, on this CPU; nothing, where there is nothing to serve.
    pub(crate) fn start(
        mut self,
        registry: &mut Registry,
        pool: &Pool,
        cpu: usize,
    ) -> Result<Option<Telemetry>, Error> {
        if self.ctl.is_none() && self.metrics.is_none() {
            return Ok(None);
        }
        let view = Arc::new(View::new(registry, pool, std::mem::take(&mut self.settings)));
        registry.view = Some(Arc::clone(&view));
        let pair = UnixStream::pair().map_err(Error::system("cannot make a pair of sockets"))?;
        let (stopped, stop) = pair;
        let mut server = Server::new(self, view, stopped, Limits::default());
        let body = move || {
            // As the kicker's: elsewhere it might disturb a worker.
            let _pinned = percpu::pin_on_cpu(cpu);
            server.serve();
        };
        let thread = thread::Builder::new().name("telemetry".into()).spawn(body);
        let thread = Some(thread.map_err(Error::system("cannot start the telemetry thread"))?);
        Ok(Some(Telemetry { stop, thread }))
    }
}

/// The thread that serves clients; dropped, it ends, and the socket file goes.
pub(crate) struct Telemetry {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let _ = self.stop.write(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
