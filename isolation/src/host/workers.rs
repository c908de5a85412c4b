//! Which CPUs are meant.
#![forbid(unsafe_code)]

use super::conditions::{isolated_cpus, partitioned_cpus};
use super::{Host, HostError, mask};
use percpu::CpuList;
use percpu::topology::Unusable;

/// The CPUs to check: those asked for, which must exist, or those that workers would get. These are the ones that the kernel isolates, else
/// all that this process may use but the first, else the only one.
pub fn to_check(host: &Host, asked: Option<&CpuList>) -> Result<CpuList, HostError> {
    let topology = host.topology()?;
    let Some(asked) = asked else {
        let online = |cpus: &CpuList| mask::both(cpus, &topology.online);
        let isolated = online(&isolated_cpus(host).unwrap_or_default());
        let allowed = online(&topology.allowed);
        let chosen = match (isolated.is_empty(), allowed.len()) {
            (false, _) => isolated,
            (true, 1) => allowed,
            (true, _) => allowed.iter().skip(1).collect(),
        };
        return if chosen.is_empty() { Err(HostError::NoCpu) } else { Ok(chosen) };
    };
    let missing = asked.iter().find(|cpu| !topology.possible.contains(*cpu));
    match missing.and_then(|cpu| topology.why_unusable(cpu)) {
        Some(why) => Err(why.into()),
        None if asked.is_empty() => Err(HostError::NoCpu),
        None => Ok(asked.clone()),
    }
}

/// The CPUs that are left for all else. Each to prepare must be one that this process may use, or that the kernel isolates: this keeps it out of
/// every process's mask, and a partition out of every other cpuset.
pub(crate) fn to_prepare(host: &Host, cpus: &CpuList) -> Result<CpuList, HostError> {
    let topology = host.topology()?;
    let isolated = isolated_cpus(host).unwrap_or_default();
    let partitioned = partitioned_cpus(host).unwrap_or_default();
    for cpu in cpus.iter() {
        match topology.why_unusable(cpu) {
            None => (),
            Some(Unusable::OutsideMask { .. } | Unusable::Outside { .. }) if isolated.contains(cpu) => (),
            Some(Unusable::OutsideCpuset { .. }) if partitioned.contains(cpu) => (),
            Some(why) => return Err(why.into()),
        }
    }
    let rest = mask::without(&topology.online, cpus);
    match (cpus.is_empty(), rest.is_empty()) {
        (true, _) => Err(HostError::NoCpu),
        (_, true) => Err(HostError::EveryCpu { cpus: cpus.clone() }),
        _ => Ok(rest),
    }
}
