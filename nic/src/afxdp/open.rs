//! Opening a port: the steps in their order, and what to say when one fails.
#![forbid(unsafe_code)]

use super::device::{ChannelsBefore, Device};
use super::doorbell::{Gather, RxDoorbell, TxDoorbell};
use super::interface::Interface;
use super::options::{Binding, Copying, LARGE_FRAME, MultiBuffer, Options, no_interface};
use super::port::{AfxdpPort, Queue};
use super::program::{Hook, Program};
use super::quirks::{self, Quirk};
use super::rx::{AfxdpRx, MAX_SEGMENTS, Receiver};
use super::socket::{Failed, Opened, Socket, Step, Wanted};
use super::stall::Stalls;
use super::tx::{AfxdpTx, Sender};
use crate::port::{OpenContext, OpenPort, PortError, RxQueue, TxQueue};
use crate::spec::PortSpec;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Opens the port `interface` names in the calling thread's network namespace.
pub(crate) fn open(
    spec: &PortSpec,
    interface_name: &str,
    options: &Options,
    context: &OpenContext<'_>,
) -> Result<OpenPort, PortError> {
    let opening = Opening { spec, name: interface_name, options, context };
    let interface =
        Arc::new(Interface::find(interface_name).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => no_interface(spec),
            _ => spec.open_error(format!("cannot ask about {interface_name}: {error}")),
        })?);
    let quirk = quirks::of(&interface.driver());
    opening.run(interface, quirk)
}

struct Opening<'a> {
    spec: &'a PortSpec,
    name: &'a str,
    options: &'a Options,
    context: &'a OpenContext<'a>,
}

/// What was agreed on with the kernel.
struct Agreed {
    hook: Hook,
    zero_copy: bool,
    multi_buffer: bool,
}

/// What was given up.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    ZeroCopy,
    MultiBuffer,
}

impl Agreed {
    /// Gives up zero-copy, then several buffers, where the kernel refused and the user left the choice to us.
    fn concede(&mut self, failed: &Failed, options: &Options) -> Option<Given> {
        let refused =
            matches!(failed.error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT));
        if failed.step != Step::Bind || !refused {
            return None;
        }
        if self.zero_copy && options.copying == Copying::Auto {
            self.zero_copy = false;
            return Some(Given::ZeroCopy);
        }
        if self.multi_buffer && options.multi_buffer == MultiBuffer::Auto {
            self.multi_buffer = false;
            return Some(Given::MultiBuffer);
        }
        None
    }
}

impl Opening<'_> {
    fn run(&self, interface: Arc<Interface>, quirk: Quirk) -> Result<OpenPort, PortError> {
        let system = |error: io::Error| self.failed(&format!("cannot ask about {}", self.name), &error);
        let frame_bytes = self.context.pool.frame_size();
        let mtu = interface.mtu().map_err(system)?;
        let mac = interface.mac().map_err(system)?.unwrap_or_default();
        let (_, ran) = interface.is_up().map_err(system)?;
        let channels = self.set_channels(&interface)?;
        if ran && channels.is_some() {
            // That resets some NICs; where it took the carrier for good, the warning below says so.
            interface.wait_for_carrier(quirk.carrier_wait);
        }
        let promiscuous = self
            .context
            .promiscuous
            .then(|| interface.promiscuous())
            .transpose()
            .map_err(|error| self.failed("cannot set promiscuous mode", &error))?;
        let receiving = interface.queue_counts().rx;
        if receiving > self.options.queues {
            tracing::warn!(
                "{}: {} receives on {receiving} queues and {} of them are ours: the packets of the others go to the kernel; pass queues={receiving}, or channels={}",
                self.spec.name(),
                self.name,
                self.options.queues,
                self.options.queues
            );
        }
        let (up, running) = interface.is_up().map_err(system)?;
        let wants_several = self.options.wants_multi_buffer(mtu, frame_bytes);
        let (program, link, hook, several) = self.attach(&interface, wants_several)?;
        if running {
            if !quirk.carrier_drop_delay.is_zero() {
                interface.wait_for_drop(quirk.carrier_drop_delay);
            }
            if !interface.wait_for_carrier(quirk.carrier_wait) {
                tracing::warn!("{}: no carrier since the XDP program was attached", self.spec.name());
            }
        } else {
            let (name, interface) = (self.spec.name(), &self.name);
            if up {
                tracing::warn!(
                    "{name}: {interface} has no carrier: no packet will pass before its other end is up or its cable in"
                );
            } else {
                tracing::warn!(
                    "{name}: {interface} is down: no packet will pass before \"ip link set {interface} up\""
                );
            }
        }
        let device = Arc::new(Device {
            _link: link,
            program,
            _promiscuous: promiscuous,
            _channels: channels,
            interface,
            max_packet_len: AtomicUsize::new(mtu + super::ETHERNET_HEADER),
        });
        let whole = quirk.zero_copy_fits(mtu, frame_bytes);
        if !whole && self.options.copying == Copying::Auto {
            let helps = quirk.zero_copy_fits(mtu, LARGE_FRAME);
            tracing::warn!(
                "{}: no zero-copy on {}: its driver would cut packets of MTU {mtu} in frames of {frame_bytes} bytes: copy mode{}",
                self.spec.name(),
                self.name,
                if helps { "; pass frame=4096" } else { "" }
            );
        }
        let may_zero_copy = hook == Hook::Native
            && match self.options.copying {
                Copying::Auto => quirk.no_zero_copy.is_none() && whole,
                Copying::Never => true,
                Copying::Always => false,
            };
        let mut agreed = Agreed { hook, zero_copy: may_zero_copy, multi_buffer: several };
        let sockets = self.sockets(&device, &mut agreed)?;
        if self.options.busy_poll_us > 0 {
            self.advise_busy_poll(&device.interface);
        }
        let max_segments = match (agreed.multi_buffer, agreed.zero_copy) {
            (false, _) => 1,
            (true, true) => quirk.zero_copy_segments,
            (true, false) => MAX_SEGMENTS,
        };
        Ok(self.assemble(&device, mac, sockets, &agreed, max_segments))
    }

    fn failed(&self, what: &str, error: &io::Error) -> PortError {
        let way_out = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                ": run as root, or \"setcap cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock+ep PROGRAM\""
            }
            Some(libc::ENODEV) => ": the interface went away meanwhile: try again when it is back",
            Some(libc::EAFNOSUPPORT) => ": this kernel is built without AF_XDP (CONFIG_XDP_SOCKETS)",
            _ => "",
        };
        self.spec.open_error(format!("{what} ({error}){way_out}"))
    }

    fn set_channels(&self, interface: &Arc<Interface>) -> Result<Option<ChannelsBefore>, PortError> {
        let Some(count) = self.options.channels else {
            return Ok(None);
        };
        let before = interface
            .set_channels(count)
            .map_err(|error| self.failed(&format!("cannot set {} to {count} channels", self.name), &error))?;
        Ok(before.map(|before| ChannelsBefore { interface: interface.clone(), before }))
    }

    /// Without these settings the NIC's interrupts go on beside the polling.
    fn advise_busy_poll(&self, interface: &Interface) {
        let lacks = interface.busy_poll_lacks(Path::new("/sys/class/net")).unwrap_or_default();
        if let Some(advice) = busy_poll_advice(&lacks) {
            tracing::warn!("{}: busy polling has little effect on {}: {advice}", self.spec.name(), self.name);
        }
    }

    /// Loads and attaches the program, the wanted way or the next best.
    fn attach(
        &self,
        interface: &Interface,
        several: bool,
    ) -> Result<(Program, OwnedFd, Hook, bool), PortError> {
        let hooks: &[Hook] = match self.options.binding {
            Binding::Auto => &[Hook::Native, Hook::Generic],
            Binding::Driver => &[Hook::Native],
            Binding::Generic => &[Hook::Generic],
        };
        let program = Program::load(self.context.queues(self.options), &self.options.filter, several)
            .map_err(|error| self.failed("cannot load the XDP program", &error))?;
        let mut last = None;
        for hook in hooks {
            match program.attach(interface.index(), *hook) {
                Ok(link) => {
                    if let Some(error) = last {
                        tracing::warn!(
                            "{}: no native XDP on {} ({error}): generic XDP, which is slower",
                            self.spec.name(),
                            self.name
                        );
                    }
                    return Ok((program, link, *hook, several));
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                    return Err(self.spec.open_error(format!(
                        "an XDP program is attached to {name} already: end the process that holds it (bpftool link, bpftool net show), or run \"ip link set dev {name} xdp off\"",
                        name = self.name
                    )));
                }
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    return Err(self.failed("cannot attach the XDP program", &error));
                }
                Err(error) => last = Some(error),
            }
        }
        let error = last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
        let mtu = interface.mtu().unwrap_or(0);
        Err(self.failed(
            &format!(
                "cannot attach the XDP program to {name}, whose MTU is {mtu}: pass bind=skb{}, or run \"ip link set {name} mtu 1500\"",
                if several { "" } else { " or multibuffer=on" },
                name = self.name
            ),
            &error,
        ))
    }

    /// Opens a socket for each queue: zero-copy if that is wanted and can be had, else copy.
    fn sockets(&self, device: &Arc<Device>, agreed: &mut Agreed) -> Result<Vec<Opened>, PortError> {
        let mut sockets: Vec<Opened> = Vec::new();
        let mut queue = 0;
        while queue < self.context.queues(self.options) {
            let wanted = Wanted {
                device,
                pool: self.context.pool,
                options: self.options,
                queue,
                rx: queue < self.options.queues,
                tx: (queue as usize) < self.context.tx_queues,
                zero_copy: agreed.zero_copy,
                multi_buffer: agreed.multi_buffer,
            };
            match Socket::open(&wanted) {
                Ok(socket) => {
                    sockets.push(socket);
                    queue += 1;
                }
                Err(failed) => {
                    if !self.concede(&failed, agreed) {
                        return Err(self.socket_failed(queue, &failed));
                    }
                    // All queues alike, from the first one on.
                    sockets.clear();
                    queue = 0;
                }
            }
        }
        Ok(sockets)
    }

    /// Gives up something, and says so; false where there is nothing to give up.
    fn concede(&self, failed: &Failed, agreed: &mut Agreed) -> bool {
        let (port, name, error) = (self.spec.name(), self.name, &failed.error);
        match agreed.concede(failed, self.options) {
            None => return false,
            Some(Given::ZeroCopy) => tracing::warn!("{port}: no zero-copy on {name} ({error}): copy mode"),
            Some(Given::MultiBuffer) => {
                let most = Options::single_buffer_len(self.context.pool.frame_size());
                tracing::warn!(
                    "{port}: no packets in several buffers on {name} ({error}): packets over {most} bytes will be dropped"
                );
            }
        }
        true
    }

    fn socket_failed(&self, queue: u32, failed: &Failed) -> PortError {
        let Failed { step, error } = failed;
        let code = error.raw_os_error();
        let name = self.name;
        let words = match (step, code) {
            (Step::Frames, _) => format!(
                "the pool has not enough free frames for queue {queue}: its fill ring alone takes {}: ask for more frames, or pass a smaller rx_ring",
                self.options.fill_ring()
            ),
            (Step::Register, Some(libc::ENOBUFS)) => {
                "the kernel will not lock so much packet memory: run as root, grant CAP_IPC_LOCK, raise \"ulimit -l\", or pass rx_ring=512".into()
            }
            (Step::Bind, Some(libc::EBUSY)) => {
                format!("queue {queue} of {name} is in use by another AF_XDP socket: end its process, or wait until it has ended")
            }
            (Step::Bind, Some(libc::EOPNOTSUPP)) if self.options.copying == Copying::Never => {
                format!("{name} cannot do zero-copy on queue {queue}: pass mode=auto")
            }
            (Step::Bind, Some(libc::EOPNOTSUPP | libc::EINVAL)) if self.options.multi_buffer == MultiBuffer::On => {
                format!("{name} cannot have packets in several buffers: pass multibuffer=auto ({error})")
            }
            // virtio-net says so where its device uses no DMA addresses, and where its buffers are of a kind that it has no code for.
            (Step::Bind, Some(libc::EINVAL | libc::ENOENT)) if self.options.copying == Copying::Never => {
                format!("{name} cannot do zero-copy on queue {queue} as it is set up ({error}): pass mode=auto")
            }
            (Step::BusyPoll, Some(libc::EPERM)) => {
                "busy polling needs CAP_NET_ADMIN: run as root, or pass busy_poll=0".into()
            }
            _ => {
                let what = match step {
                    Step::Socket => "cannot open an AF_XDP socket",
                    Step::Register => "cannot register the packet memory",
                    Step::Rings => "cannot set up the rings",
                    Step::Frames | Step::Bind => "cannot bind the AF_XDP socket",
                    Step::BusyPoll => "cannot set up busy polling",
                    Step::Redirect => "cannot direct packets to the AF_XDP socket",
                };
                return self.failed(&format!("{what} for queue {queue} of {name}"), error);
            }
        };
        self.spec.open_error(words)
    }

    fn assemble(
        &self,
        device: &Arc<Device>,
        mac: crate::port::MacAddress,
        sockets: Vec<Opened>,
        agreed: &Agreed,
        max_segments: usize,
    ) -> OpenPort {
        let mut rx: Vec<Box<dyn RxQueue>> = Vec::new();
        let mut tx: Vec<Box<dyn TxQueue>> = Vec::new();
        let mut queues = Vec::new();
        let mut stalls = Stalls::default();
        let zero_copy = sockets.iter().all(|opened| opened.socket.zero_copy);
        let shares = sockets.first().is_some_and(|opened| opened.shares);
        let tx_budget = sockets.iter().find_map(|opened| opened.socket.tx_budget);
        for mut opened in sockets {
            let (socket, rx_side, tx_side) = (opened.socket.clone(), opened.rx.take(), opened.tx.take());
            let port = self.spec.name();
            let pool = self.context.pool;
            let mut queue = Queue { socket: socket.clone(), rx: None, tx: None, invalid: None };
            if let Some(side) = rx_side {
                let doorbell = Arc::new(RxDoorbell { socket: socket.clone(), port: port.clone() });
                let receiver = Receiver::new(side, pool.clone(), self.context.id);
                stalls.watch(format!("the receive side of queue {}", socket.queue), receiver.stall());
                let side = AfxdpRx::new(receiver, self.options.busy_poll_us > 0, doorbell, socket.clone());
                queue.rx = Some(side.counters().clone());
                rx.push(Box::new(side));
            }
            if let Some(side) = tx_side {
                let doorbell = Arc::new(TxDoorbell { socket: socket.clone(), port });
                // Half a ring leaves room for what comes meanwhile.
                let gather =
                    Gather::new(socket.tx_budget.map_or(1, |most| most.min(self.options.tx_ring / 2)));
                let sender = Sender::new(side, pool.clone(), max_segments, gather);
                stalls.watch(format!("the transmit side of queue {}", socket.queue), sender.stall());
                queue.tx = Some(sender.counters().clone());
                queue.invalid = Some(sender.invalid().clone());
                let side = AfxdpTx::new(sender, doorbell, socket);
                tx.push(Box::new(side));
            }
            queues.push(queue);
        }
        let count = self.options.queues;
        let mut mode = vec![
            if zero_copy { "zero-copy" } else { "copy mode" }.to_owned(),
            agreed.hook.name().to_owned(),
            "need_wakeup".to_owned(),
        ];
        if shares {
            mode.push("shared UMEM".into());
        }
        if agreed.multi_buffer {
            mode.push("multi-buffer".into());
        }
        if let Some(budget) = tx_budget {
            mode.push(format!("tx budget {budget}"));
        }
        if self.options.busy_poll_us > 0 {
            mode.push(format!("busy polling {} us", self.options.busy_poll_us));
        }
        mode.extend(self.options.filter.describe());
        mode.push(format!("{count} queue{}", if count == 1 { "" } else { "s" }));
        let port = AfxdpPort {
            name: self.spec.name(),
            mode: mode.join(", "),
            mac,
            queues,
            stalls,
            counters: Vec::new(),
            counters_before: device.interface.counters().into_iter().collect(),
            device: device.clone(),
        };
        OpenPort { port: Box::new(port), rx, tx }
    }
}

/// What to type for settings that are 0.
fn busy_poll_advice(lacks: &[PathBuf]) -> Option<String> {
    let echo = |path: &PathBuf| {
        let value = if path.ends_with("gro_flush_timeout") { 200_000 } else { 2 };
        format!("echo {value} > {}", path.display())
    };
    let commands: Vec<String> = lacks.iter().map(echo).collect();
    (!commands.is_empty())
        .then(|| format!("its interrupts are not deferred: run \"{}\" as root", commands.join(" && ")))
}

impl OpenContext<'_> {
    /// How many queues of the interface get a socket.
    fn queues(&self, options: &Options) -> u32 {
        options.queues.max(self.tx_queues as u32)
    }
}

#[cfg(test)]
mod tests;
