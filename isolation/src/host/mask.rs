//! CPU masks as the kernel reads and writes them: hexadecimal words of 32 bits with commas between, the highest first.
#![forbid(unsafe_code)]

use percpu::CpuList;

/// Above this no kernel has CPUs.
const MAX_WORDS: usize = 65_536 / 32;

/// The CPUs of a mask such as `3` or `1,00000000`.
pub(crate) fn parse(text: &str) -> Option<CpuList> {
    let words: Vec<&str> = text.trim().split(',').collect();
    if words.len() > MAX_WORDS {
        return None;
    }
    let mut cpus = Vec::new();
    for (position, word) in words.iter().rev().enumerate() {
        if word.is_empty() || word.len() > 8 || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let bits = u32::from_str_radix(word, 16).ok()?;
        cpus.extend((0..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| position * 32 + bit));
    }
    Some(cpus.into_iter().collect())
}

/// The mask of these CPUs.
pub(crate) fn format(cpus: &CpuList) -> String {
    let mut words = vec![0u32; cpus.iter().last().map_or(1, |highest| highest / 32 + 1)];
    for cpu in cpus.iter() {
        words[cpu / 32] |= 1 << (cpu % 32);
    }
    let words: Vec<String> = words
        .iter()
        .rev()
        .enumerate()
        .map(|(position, word)| if position == 0 { format!("{word:x}") } else { format!("{word:08x}") })
        .collect();
    words.join(",")
}

/// The first list without the CPUs of the second.
pub(crate) fn without(cpus: &CpuList, less: &CpuList) -> CpuList {
    cpus.iter().filter(|cpu| !less.contains(*cpu)).collect()
}

/// The CPUs of both lists.
pub(crate) fn both(one: &CpuList, other: &CpuList) -> CpuList {
    one.iter().filter(|cpu| other.contains(*cpu)).collect()
}

/// The CPUs of either list.
pub(crate) fn either(one: &CpuList, other: &CpuList) -> CpuList {
    one.iter().chain(other.iter()).collect()
}

/// `CPU 1` or `CPUs 1-3`.
pub(crate) fn words(cpus: &CpuList) -> String {
    format!("CPU{} {cpus}", if cpus.len() == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_and_written_as_the_kernel_does() {
        for (mask, cpus) in
            [("3", "0-1"), ("1,00000000", "32"), ("80000000", "31"), ("0", ""), ("f,00000001", "0,32-35")]
        {
            let list: CpuList = cpus.parse().unwrap();
            assert_eq!(parse(mask), Some(list.clone()), "{mask}");
            assert_eq!(format(&list), mask);
        }
        assert_eq!(parse("00000000,0000000a"), Some("1,3".parse().unwrap()));
    }

    #[test]
    fn what_is_no_mask_is_none() {
        for text in ["", ",", "1,", "x", "-1", "+1", "123456789", "0x1", &"1,".repeat(5000)] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
