//! Which CPU runs what.
//!
//! One CPU for the control core, one for each worker. On a machine (or in a cpuset) with a single CPU they share it, which works and is
//! slow; on two there is one worker; on more, as many as asked for or as the ports have queues.
#![forbid(unsafe_code)]

use crate::error::Error;
use percpu::{CpuList, Topology};

/// The CPUs of the control core and of each worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) control: usize,
    pub(crate) workers: Vec<usize>,
}

impl Placement {
    /// Chooses, or checks what the user chose. `wanted` is the number of workers that would be of use.
    pub(crate) fn choose(
        topology: &Topology,
        workers: Option<&CpuList>,
        control: Option<usize>,
        wanted: usize,
    ) -> Result<Self, Error> {
        let asked = workers.into_iter().flat_map(CpuList::iter).chain(control);
        if let Some(why) = asked.into_iter().find_map(|cpu| topology.why_unusable(cpu)) {
            return Err(Error::Configuration(why.to_string()));
        }
        let allowed: Vec<usize> = topology.allowed.iter().collect();
        let Some(&first) = allowed.first() else {
            return Err(Error::Configuration(
                "this process may run on no CPU at all: widen its cpuset".into(),
            ));
        };
        if allowed.len() == 1 {
            return Ok(Self { control: first, workers: vec![first] });
        }
        let Some(list) = workers else {
            let control = control.unwrap_or(first);
            let workers = allowed.into_iter().filter(|&cpu| cpu != control).take(wanted.max(1)).collect();
            return Ok(Self { control, workers });
        };
        let workers: Vec<usize> = list.iter().collect();
        if workers.is_empty() {
            return Err(Error::Configuration("--workers names no CPU: write a list such as 1-3,5".into()));
        }
        let control = match control {
            Some(cpu) if list.contains(cpu) => {
                return Err(Error::Configuration(format!(
                    "CPU {cpu} is given to the control core and to a worker: take it out of --workers or choose another --control"
                )));
            }
            Some(cpu) => cpu,
            None => allowed.iter().copied().find(|&cpu| !list.contains(cpu)).ok_or_else(|| {
                Error::Configuration(format!(
                    "--workers {list} takes every CPU this process may use, and the control core needs one: leave one out"
                ))
            })?,
        };
        Ok(Self { control, workers })
    }

    /// The CPUs that no worker has; where there are none, those there are.
    pub(crate) fn housekeeping(&self) -> std::io::Result<CpuList> {
        let allowed = Topology::read()?.allowed;
        let others: CpuList = allowed.iter().filter(|cpu| !self.workers.contains(cpu)).collect();
        Ok(if others.is_empty() { allowed } else { others })
    }

    /// True where a worker and the control core share a CPU.
    pub(crate) fn is_shared(&self) -> bool {
        self.workers.contains(&self.control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(allowed: &str) -> Topology {
        let list = |text: &str| text.parse().unwrap();
        Topology {
            possible: list("0-7"),
            online: list("0-7"),
            cpuset: Some(list("0-7")),
            allowed: list(allowed),
        }
    }

    fn choose(
        allowed: &str,
        workers: Option<&str>,
        control: Option<usize>,
        wanted: usize,
    ) -> Result<Placement, String> {
        let workers: Option<CpuList> = workers.map(|text| text.parse().unwrap());
        Placement::choose(&topology(allowed), workers.as_ref(), control, wanted)
            .map_err(|error| error.to_string())
    }

    fn placement(control: usize, workers: &[usize]) -> Result<Placement, String> {
        Ok(Placement { control, workers: workers.to_vec() })
    }

    #[test]
    fn one_cpu_is_shared_two_are_split_many_follow_the_queues() {
        assert_eq!(choose("3", None, None, 4), placement(3, &[3]));
        assert!(choose("3", None, None, 4).unwrap().is_shared());
        assert_eq!(choose("0-1", None, None, 4), placement(0, &[1]));
        assert_eq!(choose("0-7", None, None, 1), placement(0, &[1]));
        assert_eq!(choose("0-7", None, None, 4), placement(0, &[1, 2, 3, 4]));
        assert_eq!(choose("0-7", None, Some(1), 2), placement(1, &[0, 2]));
    }

    #[test]
    fn the_users_choice_is_kept_or_refused_in_words() {
        assert_eq!(choose("0-3", Some("2,0"), None, 1), placement(1, &[0, 2]));
        assert_eq!(choose("0-3", Some("0"), Some(3), 1), placement(3, &[0]));
        assert!(choose("0-3", Some("4"), None, 1).unwrap_err().contains("affinity mask"));
        assert!(choose("0-3", Some("9"), None, 1).unwrap_err().contains("does not exist"));
        assert!(choose("0-3", Some("1"), Some(1), 1).unwrap_err().contains("control core and to a worker"));
        assert!(choose("0-1", Some("0-1"), None, 1).unwrap_err().contains("leave one out"));
        assert!(choose("0-1", Some(""), None, 1).unwrap_err().contains("names no CPU"));
    }
}
