//! The documents say what the code says: every reason for a drop, and every form of a port specification.
#![forbid(unsafe_code)]

use nic::DropReason;
use nic::drivers::DRIVERS;

#[test]
fn every_drop_reason_is_documented_with_its_meaning() {
    let document = include_str!("../../docs/counters.md");
    let table = DropReason::ALL.iter().map(|reason| format!("| `{reason}` | {} |", reason.meaning().trim()));
    let wanted: Vec<String> = table.collect();
    let (_, section) =
        document.split_once("\n## Drop reasons\n").expect("docs/counters.md: no heading \"Drop reasons\"");
    let found: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(found, wanted, "the table of docs/counters.md is to be:\n{}\n", wanted.join("\n"));
}

#[test]
fn every_form_of_every_driver_is_documented() {
    let document = include_str!("../../docs/ports.md");
    for driver in DRIVERS {
        assert!(
            document.contains(&format!("\n## {}\n", driver.name)),
            "docs/ports.md: no heading {}",
            driver.name
        );
        for (form, _) in driver.forms {
            assert!(document.contains(&format!("`{form}`")), "docs/ports.md: no `{form}`");
        }
    }
}
