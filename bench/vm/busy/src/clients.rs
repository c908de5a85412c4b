//! The clients: one asks and changes things by the socket, one scrapes metrics, one has the kernel send packets by the TAP.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The run's --ctl
    #[arg(long)]
    ctl: PathBuf,
    /// The run's --metrics
    #[arg(long)]
    metrics: SocketAddr,
    /// Where the kernel sends packets to by the TAP
    #[arg(long)]
    datagrams: SocketAddr,
}

/// No answer takes longer.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two requests: the clients share a CPU with all that they keep busy.
const PAUSE: Duration = Duration::from_millis(2);

/// What is said by the socket, again and again.
const REQUESTS: [&str; 12] = [
    r#"{"show": "ports"}"#,
    r#"{"set": {"application": {"name": "portmap", "text": "(0,0)(1,1)"}}}"#,
    r#"{"show": "workers"}"#,
    r#"{"set": {"log_level": "debug"}}"#,
    r#"{"show": "drops"}"#,
    r#"{"set": {"port": {"number": 1, "up": false}}}"#,
    r#"{"show": "violations"}"#,
    r#"{"set": {"application": {"name": "portmap", "text": "(0,1)"}}}"#,
    r#"{"show": "pool"}"#,
    r#"{"set": {"port": {"number": 1, "up": true}}}"#,
    r#"{"show": "settings"}"#,
    r#"{"set": {"log_level": "info"}}"#,
];

/// Waits for the run to be there.
fn connect(args: &Args) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(&args.ctl) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            Err(error) if start.elapsed() > LIMIT => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A connection that ends is the run's end.
fn has_ended(error: &std::io::Error) -> bool {
    let ends = [
        ErrorKind::BrokenPipe,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionRefused,
        ErrorKind::NotFound,
    ];
    ends.contains(&error.kind())
}

/// Asks until the run ends, by a new connection each time all has been said; gives how many answers came.
fn ask(args: &Args, first: UnixStream) -> Result<u64> {
    let (mut stream, mut answers) = (first, 0);
    loop {
        let mut reader = BufReader::new(stream.try_clone()?);
        for request in REQUESTS {
            let mut line = String::new();
            match stream
                .write_all(format!("{request}\n").as_bytes())
                .and_then(|()| reader.read_line(&mut line))
            {
                Ok(0) => return Ok(answers),
                Ok(_) => ensure!(line.starts_with('{') && !line.contains("\"error\""), "{request}: {line}"),
                Err(error) if has_ended(&error) => return Ok(answers),
                Err(error) => return Err(error.into()),
            }
            answers += 1;
            thread::sleep(PAUSE);
        }
        match UnixStream::connect(&args.ctl) {
            Ok(next) => stream = next,
            Err(error) if has_ended(&error) => return Ok(answers),
            Err(error) => return Err(error.into()),
        }
        stream.set_read_timeout(Some(LIMIT))?;
    }
}

fn scrape_once(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.contains("isoplane_build_info"))
}

fn scrape(address: SocketAddr) -> Result<u64> {
    let mut scrapes = 0;
    loop {
        match scrape_once(address) {
            // The run has ended in the middle of it.
            Ok(whole) if !whole => return Ok(scrapes),
            Ok(_) => scrapes += 1,
            Err(error) if has_ended(&error) => return Ok(scrapes),
            Err(error) => return Err(error.into()),
        }
        thread::sleep(PAUSE);
    }
}

/// Broadcasts, which nobody has to be found for, until the run has ended; where the interface has no address yet, they are not sent.
fn send(to: SocketAddr, has_ended: &AtomicBool) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_broadcast(true)?;
    let mut sent = 0;
    while !has_ended.load(Ordering::Relaxed) {
        sent += u64::from(socket.send_to(&[0; 100], to).is_ok());
        thread::sleep(PAUSE);
    }
    Ok(sent)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (stream, has_ended) = (connect(args)?, AtomicBool::new(false));
    let (answers, scrapes, datagrams) = thread::scope(|scope| {
        let scraper = scope.spawn(|| scrape(args.metrics));
        let sender = scope.spawn(|| send(args.datagrams, &has_ended));
        let answers = ask(args, stream);
        has_ended.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a client panicked");
        let (scrapes, datagrams) = (scraper.join().map_err(panicked)??, sender.join().map_err(panicked)??);
        Ok::<_, anyhow::Error>((answers?, scrapes, datagrams))
    })?;
    println!("{}", serde_json::json!({ "answers": answers, "scrapes": scrapes, "datagrams": datagrams }));
    Ok(())
}
