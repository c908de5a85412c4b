//! An isolated cpuset partition: a cgroup whose CPUs the scheduler leaves alone (Documentation/admin-guide/cgroup-v2.rst, "Cpuset
//! Interface Files"). The kernel is the judge of whether it can be; it says so when the partition's file is read.
#![forbid(unsafe_code)]

use super::super::conditions::isolated_cpus;
use super::super::tree::in_words;
use super::super::{Host, Unread, mask};
use super::change::{Kind, Undone};
use percpu::CpuList;
use std::fs;
use std::io;

pub(super) const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
/// The name of the cgroup, below the root.
const NAME: &str = "isoplane";
const CPUSET: &str = "cpuset";

pub(super) fn folder(root: &str) -> String {
    format!("{root}/{NAME}")
}

/// What has to be done, or why it cannot be.
pub(super) fn check(host: &Host, cpus: &CpuList) -> Result<Result<Vec<Kind>, String>, Unread> {
    let Some(root) = host.mounted("cgroup2")? else { return Ok(Err("it is not mounted".into())) };
    if !root.starts_with("/sys/fs/cgroup") {
        return Ok(Err(format!("it is mounted on {root}, and not below /sys/fs/cgroup")));
    }
    if host.has(&format!("{root}/cgroup.type")) {
        return Ok(Err("this is a container: only the root cgroup can be divided".into()));
    }
    if !has_cpuset(host, &format!("{root}/cgroup.controllers"))? {
        return Ok(Err("it has no cpuset controller: cgroup v1 keeps it".into()));
    }
    if mask::without(cpus, &isolated_cpus(host)?).is_empty() {
        return Ok(Err(format!("{} isolated already", are(cpus))));
    }
    if host.has(&folder(&root)) {
        let folder = folder(&root);
        return Ok(Err(format!("there is a {folder} already: run \"rmdir {folder}\" where nobody uses it")));
    }
    let enabled = has_cpuset(host, &format!("{root}/{SUBTREE_CONTROL}"))?;
    let controller = (!enabled).then(|| Kind::Controller { root: root.clone() });
    let partition = Kind::Partition { root, cpus: cpus.to_string() };
    Ok(Ok(controller.into_iter().chain([partition]).collect()))
}

fn are(cpus: &CpuList) -> String {
    format!("{} {}", mask::words(cpus), if cpus.len() == 1 { "is" } else { "are" })
}

fn has_cpuset(host: &Host, path: &str) -> Result<bool, Unread> {
    Ok(host.text(path)?.split_whitespace().any(|controller| controller == CPUSET))
}

pub(super) fn enable(host: &Host, root: &str) -> Result<(), String> {
    host.write(&format!("{root}/{SUBTREE_CONTROL}"), "+cpuset").map_err(|error| in_words(&error))
}

/// Switches the controller off again, unless another cgroup has begun to use it.
pub(super) fn disable(host: &Host, root: &str, force: bool) -> Undone {
    let path = format!("{root}/{SUBTREE_CONTROL}");
    match has_cpuset(host, &path) {
        Ok(true) => (),
        Ok(false) => return Undone::Already,
        Err(Unread::Missing { .. }) => return Undone::Gone,
        Err(error) => return Undone::Refused { why: error.to_string() },
    }
    let users = host
        .names(root)
        .unwrap_or_default()
        .into_iter()
        .find(|name| host.word(&format!("{root}/{name}/cpuset.cpus")).is_ok_and(|cpus| !cpus.is_empty()));
    match users {
        Some(user) if !force => Undone::Foreign { found: format!("used by {root}/{user}") },
        _ => match host.write(&path, "-cpuset") {
            Ok(()) => Undone::Back,
            Err(error) => Undone::Refused { why: in_words(&error) },
        },
    }
}

/// Makes the partition, or nothing.
pub(super) fn make(host: &Host, root: &str, cpus: &str) -> Result<(), String> {
    let folder = folder(root);
    fs::create_dir(host.path(&folder)).map_err(|error| in_words(&error))?;
    let fill = || {
        let file = format!("{folder}/cpuset.cpus.partition");
        host.write(&format!("{folder}/cpuset.cpus"), cpus).map_err(|error| in_words(&error))?;
        host.write(&file, "isolated").map_err(|error| in_words(&error))?;
        match host.word(&file) {
            Ok(word) if word == "isolated" => Ok(()),
            // The kernel has a reason, in parentheses.
            Ok(word) => Err(word),
            Err(error) => Err(error.to_string()),
        }
    };
    fill().inspect_err(|_| {
        // It is empty; where it stays all the same, the next prepare names it.
        let _ = fs::remove_dir(host.path(&folder));
    })
}

pub(super) fn remove(host: &Host, root: &str) -> Undone {
    let folder = folder(root);
    match fs::remove_dir(host.path(&folder)) {
        Ok(()) => Undone::Back,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Undone::Already,
        Err(error) => {
            let processes = host.text(&format!("{folder}/cgroup.procs")).unwrap_or_default();
            Undone::Refused {
                why: match processes.lines().count() {
                    0 => in_words(&error),
                    count => format!(
                        "{count} process{} in it: end {}, or write the number to {root}/cgroup.procs",
                        if count == 1 { " is" } else { "es are" },
                        if count == 1 { "it" } else { "each" },
                    ),
                },
            }
        }
    }
}
