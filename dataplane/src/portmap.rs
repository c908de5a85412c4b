//! Pairs of ports that forward to each other, in the notation of DPDK's l2fwd: `(0,1)(2,3)`.
#![forbid(unsafe_code)]

use crate::error::Error;
use nic::PortId;
use std::fmt;
use std::ops::Index;

/// For each port its partner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMap(Vec<PortId>);

impl PortMap {
    /// Reads pairs; without a text pairs neighbours: 0 with 1, 2 with 3, and a last odd one with itself.
    pub fn new(text: Option<&str>, ports: usize) -> Result<Self, Error> {
        let Some(text) = text else {
            let partner = |port: usize| if port ^ 1 < ports { port ^ 1 } else { port };
            return Ok(Self((0..ports).map(|port| PortId(partner(port) as u16)).collect()));
        };
        let wrong = |problem: String| Error::Configuration(format!("--portmap \"{text}\": {problem}"));
        let mut partners: Vec<Option<PortId>> = vec![None; ports];
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let mut rest = compact.as_str();
        while !rest.is_empty() {
            rest = rest.strip_prefix(',').unwrap_or(rest);
            let (pair, behind) = rest
                .strip_prefix('(')
                .and_then(|inside| inside.split_once(')'))
                .ok_or_else(|| wrong(format!("\"{rest}\" is no pair: write pairs such as (0,1)(2,3)")))?;
            rest = behind;
            let (left, right) = pair
                .split_once(',')
                .and_then(|(left, right)| Some((left.parse::<usize>().ok()?, right.parse::<usize>().ok()?)))
                .ok_or_else(|| wrong(format!("\"({pair})\" is no pair of port numbers: write (0,1)")))?;
            for (port, partner) in [(left, right), (right, left)] {
                let place = partners.get_mut(port).ok_or_else(|| {
                    wrong(format!(
                        "there is no port {port}: {ports} ports are open, 0 to {}",
                        ports.saturating_sub(1)
                    ))
                })?;
                if place.is_some_and(|known| usize::from(known.0) != partner) {
                    return Err(wrong(format!("port {port} is in two pairs: name it once")));
                }
                *place = Some(PortId(partner as u16));
            }
        }
        match partners.iter().position(Option::is_none) {
            Some(port) => Err(wrong(format!("port {port} has no partner: add a pair with it"))),
            None => Ok(Self(partners.into_iter().flatten().collect())),
        }
    }
}

/// As it is read: each pair once.
impl fmt::Display for PortMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.iter().enumerate().filter(|(port, partner)| *port <= usize::from(partner.0));
        pairs.into_iter().try_for_each(|(port, partner)| write!(formatter, "({port},{partner})"))
    }
}

impl Index<PortId> for PortMap {
    type Output = PortId;

    fn index(&self, port: PortId) -> &PortId {
        &self.0[usize::from(port.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: Option<&str>, ports: usize) -> Result<Vec<u16>, String> {
        PortMap::new(text, ports)
            .map(|map| map.0.iter().map(|port| port.0).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn neighbours_are_partners_by_default() {
        assert_eq!(map(None, 4), Ok(vec![1, 0, 3, 2]));
        assert_eq!(map(None, 3), Ok(vec![1, 0, 2]));
        assert_eq!(map(None, 1), Ok(vec![0]));
    }

    #[test]
    fn pairs_are_read() {
        assert_eq!(map(Some("(0,2)(1,3)"), 4), Ok(vec![2, 3, 0, 1]));
        assert_eq!(map(Some("(0,2), (1,3)"), 4), Ok(vec![2, 3, 0, 1]));
        assert_eq!(map(Some("(0,0)"), 1), Ok(vec![0]));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (text, ports, written) in
            [(None, 3, "(0,1)(2,2)"), (Some("(3,1), (0,2)"), 4, "(0,2)(1,3)"), (Some("(0,0)"), 1, "(0,0)")]
        {
            let portmap = PortMap::new(text, ports).unwrap();
            assert_eq!(portmap.to_string(), written);
            assert_eq!(PortMap::new(Some(written), ports).unwrap(), portmap);
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, words) in [
            ("0,1", "is no pair"),
            ("(0,1", "is no pair"),
            ("(0)", "no pair of port numbers"),
            ("(0,x)", "no pair of port numbers"),
            ("(0,2)", "no port 2"),
            ("(0,1)(1,1)", "in two pairs"),
            ("(0,0)", "port 1 has no partner"),
            ("", "port 0 has no partner"),
        ] {
            let error = map(Some(text), 2).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
