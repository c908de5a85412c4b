//! Routes that a client replaces while packets go by them: what comes afterwards goes elsewhere, and nothing is lost between.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/controlled.rs"]
mod controlled;

use common::{assert_books, rounds};
use controlled::{Running, isoplane, refused};
use serde_json::{Value, json};

/// What the ports have sent so far.
fn sent(running: &Running) -> Vec<u64> {
    let ports = running.show("ports");
    ports.as_array().unwrap().iter().map(|port| port["tx_packets"].as_u64().unwrap()).collect()
}

/// Waits until this port has sent more than it had, and looks that the others have not.
#[track_caller]
fn assert_only(running: &Running, port: usize) {
    // It stands from the turn on in which the new table was seen, and that has ended when something came out of the new port.
    let before = sent(running)[port];
    running.wait_for("the first packets there", || (sent(running)[port] > before).then_some(()));
    let stand = sent(running);
    running.wait_for("more packets there", || (sent(running)[port] > stand[port] + 5000).then_some(()));
    for (other, now) in sent(running).into_iter().enumerate().filter(|(other, _)| *other != port) {
        assert_eq!(now, stand[other], "port {other} sends, and the packets should go to port {port}");
    }
}

#[test]
fn traffic_goes_where_the_new_portmap_says_and_none_is_lost() {
    let sink = ["--port", "mem:sink?check=off"];
    let ports = [&["--port", "mem:gen?rate=200000&check=off"][..], &sink, &sink, &sink].concat();
    let running = Running::start(&[&ports[..], &["--portmap", "(0,1)(2,3)"]].concat());
    running.wait_for("the socket", || running.path("ctl").exists().then_some(()));
    assert_only(&running, 1);
    running.set(&["portmap", "(0,2)(1,3)"]);
    assert_only(&running, 2);
    let settings = running.show("settings");
    assert_eq!((&settings[0]["name"], &settings[0]["text"]), (&json!("portmap"), &json!("(0,2)(1,3)")));
    // What is wrong is refused in the words that the option has, and changes nothing.
    for (pairs, words) in [
        ("(0,9)(1,2)", "--portmap \"(0,9)(1,2)\": there is no port 9: 4 ports are open, 0 to 3"),
        ("(0,1)(1,2)", "port 1 is in two pairs"),
        ("(0,1)", "port 2 has no partner"),
        ("(0,1", "is no pair"),
        ("(0,1)\n(2,3)", "without control characters"),
    ] {
        refused(&running.ctl(&["set", "portmap", pairs]), &[words]);
    }
    refused(&running.ctl(&["set", "app", "routes", "x"]), &["no setting \"routes\"", "it has are portmap"]);
    assert_eq!(running.show("settings"), settings);
    assert_only(&running, 2);
    // To a port that is set down, by name.
    running.set(&["port", "3", "down"]);
    running.set(&["app", "portmap", "(0,3)(1,2)"]);
    let lost = || running.show("ports")[3]["drops"]["admin_down"].as_u64().unwrap_or(0);
    running.wait_for("drops at a port that is down", || (lost() > 1000).then_some(()));
    running.set(&["port", "3", "up"]);
    assert_only(&running, 3);
    let table = String::from_utf8(running.ctl(&["show", "settings"]).stdout).unwrap();
    assert!(
        table.lines().nth(1).is_some_and(|row| row.starts_with("portmap  (0,3)(1,2)  all pairs")),
        "{table}"
    );
    running.wait_for("the log", || running.log().contains("portmap was set to (0,3)(1,2)").then_some(()));
    assert!(running.log().contains("portmap was set to (0,2)(1,3) by a client"), "{}", running.log());
    let report = running.end();
    assert_books(&report);
    let reasons =
        |port: usize| report["ports"][port]["drops"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        (0..4).map(reasons).collect::<Vec<_>>(),
        [vec![], vec![], vec![], vec!["admin_down".to_owned()]]
    );
}

/// As fast as a client can, and every packet is in the books.
#[test]
fn a_portmap_that_changes_all_the_time_loses_nothing() {
    let ports = ["--port", "mem:gen?check=off"].repeat(4);
    let running = Running::start(&ports);
    running.wait_for("the socket", || running.path("ctl").exists().then_some(()));
    let maps = ["(0,1)(2,3)", "(0,2)(1,3)", "(0,3)(1,2)", "(0,0)(1,1)(2,2)(3,3)"];
    for round in 0..rounds(40, 1000) {
        running.set(&["portmap", maps[round % maps.len()]]);
    }
    assert!(sent(&running).iter().all(|packets| *packets > 0));
    let report = running.end();
    assert_books(&report);
    let lost =
        |port: &Value| port["drops"].as_object().unwrap().keys().any(|reason| reason != "tx_ring_full");
    assert!(!report["ports"].as_array().unwrap().iter().any(lost), "{report:#}");
}

#[test]
fn an_application_without_settings_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ctl").to_str().unwrap().to_owned();
    let mut pktgen = std::process::Command::new(env!("CARGO_BIN_EXE_pktgen"));
    pktgen.args([
        "--port",
        "mem:cable",
        "--port",
        "mem:cable",
        "--quiet",
        "--rate",
        "1000",
        "--ctl",
        &socket,
    ]);
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child =
        pktgen.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(log).spawn();
    let running = Running { child: child.unwrap(), folder };
    running.wait_for("the socket", || running.path("ctl").exists().then_some(()));
    let ask = |args: &[&str]| isoplane(&[&["ctl", "--socket", &socket], args].concat());
    refused(&ask(&["set", "portmap", "(0,1)"]), &["no setting \"portmap\": those that it has are none"]);
    assert_eq!(ask(&["show", "settings"]).stdout, b"this application has no settings\n");
}
