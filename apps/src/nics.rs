//! `isoplane nics`: the machine's Ethernet devices, who has them, and how a port is made of each.
#![forbid(unsafe_code)]

use clap::Args;
use nic::pci::{Device, Interface, Restored};
use std::fmt::Write;

/// Options of the command.
#[derive(Args)]
pub struct Nics {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Between two columns.
const GAP: &str = "  ";

/// The table, or JSON.
pub fn run(options: &Nics) -> anyhow::Result<String> {
    let devices = nic::pci::devices();
    if options.json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(&devices)?));
    }
    Ok(table(&devices))
}

/// What [`nic::pci::restore`] did, a line for each device.
pub fn restored(devices: &[Restored]) -> String {
    devices.iter().map(|device| format!("  {}\n", device.line)).collect()
}

fn interface(interface: &Interface) -> String {
    match (&interface.used, interface.up) {
        (Some(_), _) => format!("{} (in use)", interface.name),
        (None, true) => format!("{} (up)", interface.name),
        (None, false) => format!("{} (down)", interface.name),
    }
}

fn row(device: &Device) -> [String; 7] {
    let none = || "-".to_owned();
    let chip = match (&device.name, &device.id) {
        (Some(name), _) => name.clone(),
        (None, Some(id)) => id.clone(),
        (None, None) => none(),
    };
    let interfaces: Vec<String> = device.interfaces.iter().map(interface).collect();
    let group = match (device.iommu_group, device.group_viable) {
        (Some(group), Some(false)) => format!("{group}, not viable"),
        (Some(group), _) => group.to_string(),
        (None, _) => none(),
    };
    [
        device.address.clone(),
        chip,
        device.driver.clone().unwrap_or_else(none),
        if interfaces.is_empty() { none() } else { interfaces.join(", ") },
        group,
        device.isoplane_driver.unwrap_or("-").to_owned(),
        device.specification.clone().unwrap_or_else(none),
    ]
}

fn table(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "this machine has no Ethernet device on PCI; ports of other kinds: docs/ports.md\n"
            .to_owned();
    }
    let head = ["address", "chip", "driver", "interface", "IOMMU group", "Isoplane's", "port"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(devices.iter().map(row));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    // What has no driver of ours shows that in its line.
    let ours = devices.iter().filter(|device| device.isoplane_driver.is_some());
    let problems: Vec<&String> = ours.filter_map(|device| device.problem.as_ref()).collect();
    if !problems.is_empty() {
        text.push_str("\nNot a vfio: port as it is:\n");
        problems.iter().for_each(|problem| {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "  {problem}");
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(address: &str) -> Device {
        Device {
            address: address.into(),
            id: Some("8086:10c9".into()),
            name: Some("82576".into()),
            driver: Some("igb".into()),
            interfaces: vec![Interface { name: "eth0".into(), up: true, used: None }],
            iommu_group: Some(7),
            group_viable: Some(true),
            held_back_by: Vec::new(),
            isoplane_driver: Some("igb"),
            specification: Some(format!("vfio:{address}")),
            problem: None,
        }
    }

    #[test]
    fn columns_stand_below_each_other_and_problems_below_the_table() {
        let mut other = device("0000:04:00.0");
        (other.name, other.driver, other.iommu_group) = (None, None, None);
        other.interfaces.clear();
        other.problem = Some("0000:04:00.0 is behind no IOMMU: switch it on".into());
        let mut third = device("0000:05:00.0");
        third.group_viable = Some(false);
        third.interfaces[0].used = Some("has the default route".into());
        let mut unknown = device("0000:06:00.0");
        (unknown.isoplane_driver, unknown.specification) = (None, Some("afxdp:eth0".into()));
        unknown.problem = Some("no driver of Isoplane knows it".into());
        let text = table(&[device("0000:03:00.0"), other, third, unknown]);
        let expected = "\
address       chip       driver  interface      IOMMU group    Isoplane's  port
0000:03:00.0  82576      igb     eth0 (up)      7              igb         vfio:0000:03:00.0
0000:04:00.0  8086:10c9  -       -              -              igb         vfio:0000:04:00.0
0000:05:00.0  82576      igb     eth0 (in use)  7, not viable  igb         vfio:0000:05:00.0
0000:06:00.0  82576      igb     eth0 (up)      7              -           afxdp:eth0

Not a vfio: port as it is:
  0000:04:00.0 is behind no IOMMU: switch it on
";
        assert_eq!(text, expected);
        assert!(table(&[]).contains("no Ethernet device"));
    }
}
