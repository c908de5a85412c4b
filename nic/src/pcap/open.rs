//! From a specification to an open port. The capture is read and checked whole before anything is opened to write.
#![forbid(unsafe_code)]

use super::capture::Capture;
use super::output::{Channel, Output};
use super::rx::{FileRx, NoFileRx, Replay, span_ns};
use super::tx::{FileTx, NoFileTx};
use crate::port::{
    LinkState, MacAddress, OpenContext, OpenPort, Port, PortError, PortGone, PortId, PortPlan, RxQueue,
    TxQueue,
};
use crate::spec::PortSpec;
use nix::unistd::{AccessFlags, access};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The target that means: no input.
const NO_INPUT: &str = "none";
/// Every pool's frames have room for this much data.
const FRAME_DATA_BYTES: usize = 1526;

struct PcapPlan {
    spec: PortSpec,
    input: Option<Input>,
    output: Option<PathBuf>,
}

struct Input {
    capture: Capture,
    replay: Replay,
    /// Kept open for its lock: no port writes to a file that another one replays.
    file: File,
}

pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    let output = spec.text("out").map(PathBuf::from);
    let input = if spec.target() == NO_INPUT {
        spec.check_keys(&["out"])?;
        if output.is_none() {
            return Err(spec.error("neither input nor output: write pcap:none?out=FILE or pcap:FILE"));
        }
        None
    } else {
        spec.check_keys(&["out", "speed", "loop", "truncated", "partial"])?;
        Some(check_input(spec)?)
    };
    if let Some(path) = &output {
        check_output(spec, path, input.as_ref().map(|input| &input.file))?;
    }
    Ok(Box::new(PcapPlan { spec: spec.clone(), input, output }))
}

fn check_input(spec: &PortSpec) -> Result<Input, PortError> {
    let passes = spec.number("loop", 0..=u64::MAX, 1)?;
    let replay = Replay {
        paced: spec.choice("speed", &[("wire", true), ("max", false)], true)?,
        passes: (passes > 0).then_some(passes),
        deliver_partial: spec.choice("partial", &[("drop", false), ("deliver", true)], false)?,
    };
    let accept = spec.choice("truncated", &[("refuse", false), ("accept", true)], false)?;
    let path = Path::new(spec.target());
    let refuse = |error: super::CaptureError| spec.open_error(format!("{error}: {}", error.advice(path)));
    let (mut capture, file) = Capture::read(path).map_err(refuse)?;
    if let Some(error) = capture.take_cut_off() {
        if !accept {
            return Err(refuse(error));
        }
        tracing::warn!("{}: {error}: using the {} whole packets", spec.name(), capture.len());
    }
    let partial = capture.packets().filter(|packet| packet.data.len() < packet.original_len).count();
    if partial > 0 && !replay.deliver_partial {
        let (name, all) = (spec.name(), capture.len());
        tracing::warn!(
            "{name}: {partial} of {all} packets were captured only in part and will be dropped: add partial=deliver \
             to send them as they are"
        );
    }
    Ok(Input { capture, replay, file })
}

/// Where a file is. What has no directory in its path is in the current one.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_output(spec: &PortSpec, path: &Path, input: Option<&File>) -> Result<(), PortError> {
    let shown = path.display();
    if path.file_name().is_none() {
        return Err(spec.error(format!("out={shown} names no file: write out=FILE")));
    }
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let existing = fs::metadata(path).ok();
    if existing.as_ref().is_some_and(fs::Metadata::is_dir) {
        return Err(spec.error(format!("out={shown} is a directory: write out={shown}/FILE")));
    }
    let is_input = input.and_then(|file| file.metadata().ok()).map(identity);
    let exists = existing.is_some();
    if exists && existing.map(identity) == is_input {
        return Err(spec.error(format!("out={shown} is the input itself: choose another file")));
    }
    let (place, needed) = if exists {
        (path, AccessFlags::W_OK)
    } else {
        (folder(path), AccessFlags::W_OK | AccessFlags::X_OK)
    };
    access(place, needed).map_err(|error| {
        let place = place.display();
        spec.open_error(format!("cannot write to {place} ({error}): choose another out=FILE"))
    })
}

impl PortPlan for PcapPlan {
    fn rx_queues(&self) -> usize {
        1
    }

    fn max_tx_queues(&self) -> usize {
        usize::MAX
    }

    /// Its rings keep no frame, but the longest packet must fit the pool.
    fn frames(&self, _tx_queues: usize) -> usize {
        let captured = self.input.iter().flat_map(|input| input.capture.packets());
        captured.map(|packet| packet.data.len().div_ceil(FRAME_DATA_BYTES)).max().unwrap_or(0)
    }

    fn max_packet_len(&self) -> Option<usize> {
        Some(super::MAX_PACKET_BYTES)
    }

    fn output_file(&self) -> Option<PathBuf> {
        let path = self.output.as_deref()?;
        if let Ok(existing) = fs::canonicalize(path) {
            // /dev/null has room for everybody.
            return existing.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(existing);
        }
        Some(fs::canonicalize(folder(path)).ok()?.join(path.file_name()?))
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        let Self { spec, input, output } = *self;
        let mode = mode(input.as_ref(), output.as_deref());
        let output = match output {
            None => None,
            Some(path) => {
                let created = Output::create(&spec.name(), &path);
                Some(Arc::new(created.map_err(|problem| spec.open_error(problem))?))
            }
        };
        let tx = || -> Box<dyn TxQueue> {
            match &output {
                Some(output) => Box::new(FileTx::new(Channel::new(Arc::clone(output)))),
                None => Box::new(NoFileTx { counters: Arc::default() }),
            }
        };
        let tx = (0..context.tx_queues).map(|_| tx()).collect();
        let (rx, input_file): (Box<dyn RxQueue>, _) = match input {
            Some(Input { capture, replay, file }) => {
                (Box::new(FileRx::new(capture, replay, context.pool, context.id)), Some(file))
            }
            None => (Box::new(NoFileRx { counters: Arc::default() }), None),
        };
        let port = PcapPort { name: spec.name(), mode, id: context.id, output, _input: input_file };
        Ok(OpenPort { port: Box::new(port), rx: vec![rx], tx })
    }
}

fn mode(input: Option<&Input>, output: Option<&Path>) -> String {
    let mut words = Vec::new();
    if let Some(Input { capture, replay, .. }) = input {
        let packets = capture.len();
        words.push(if replay.paced {
            let (_, span_ns) = span_ns(&capture.entries);
            format!("{packets} packets over {:.3} s", span_ns as f64 / 1e9)
        } else {
            format!("{packets} packets as fast as they go")
        });
        match replay.passes {
            Some(1) => {}
            Some(passes) => words.push(format!("{passes} times")),
            None => words.push("for ever".into()),
        }
    }
    if let Some(path) = output {
        words.push(format!("writing {}", path.display()));
    }
    words.join(", ")
}

/// The control handle. It keeps the files, and with them their locks, as long as the port is open.
struct PcapPort {
    name: String,
    mode: String,
    id: PortId,
    output: Option<Arc<Output>>,
    _input: Option<File>,
}

impl Port for PcapPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        super::DRIVER.name
    }

    fn mode(&self) -> String {
        self.mode.clone()
    }

    /// Locally administered: 02:49:50 ("IP" for Isoplane), then the port's number.
    fn mac(&self) -> MacAddress {
        let [high, low] = self.id.0.to_be_bytes();
        MacAddress([0x02, 0x49, 0x50, 0x00, high, low])
    }

    fn max_packet_len(&self) -> usize {
        super::MAX_PACKET_BYTES
    }

    fn link(&mut self) -> LinkState {
        match self.output.as_ref().and_then(|output| output.failure()) {
            Some(reason) => LinkState::Gone(reason.to_owned()),
            None => LinkState::Up { speed_mbps: None },
        }
    }

    fn lost_output(&self) -> Option<PortGone> {
        let reason = self.output.as_ref()?.failure()?.to_owned();
        Some(PortGone { port: self.name.clone(), reason })
    }

    /// The stamps' clock drifts from the system's by the error of the counter's frequency.
    fn refresh(&mut self) {
        if let Some(output) = &self.output {
            output.set_clock();
        }
    }
}
