//! Where a device's interrupts are delivered: to the control core's CPU, and to no other. A worker's CPU is to see none.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

/// Has all of a PCI function's MSI-X interrupts delivered to this CPU; an error where one may still come elsewhere. `root` is `/`.
pub(super) fn deliver(root: &Path, address: &str, cpu: usize) -> io::Result<()> {
    let wanted = cpu.to_string();
    for entry in fs::read_dir(root.join("sys/bus/pci/devices").join(address).join("msi_irqs"))? {
        let irq = root.join("proc/irq").join(entry?.file_name());
        let allowed = irq.join("smp_affinity_list");
        if fs::read_to_string(&allowed)?.trim() != wanted {
            fs::write(&allowed, &wanted)?;
        }
        // What was written holds at once only where the interrupt controller can move an interrupt that is not being served; elsewhere the next one
        // still comes to the old CPU. Some kernels do not tell.
        let effective = match fs::read_to_string(irq.join("effective_affinity_list")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::read_to_string(&allowed),
            effective => effective,
        }?;
        if effective.trim() != wanted {
            return Err(io::Error::other(format!("an interrupt still goes to CPU {}", effective.trim())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_interrupts_of_a_device_go_to_one_cpu_or_it_is_said() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let address = "0000:03:00.0";
        assert_eq!(deliver(root, address, 2).unwrap_err().kind(), io::ErrorKind::NotFound);
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for irq in [40, 41] {
            put(&format!("sys/bus/pci/devices/{address}/msi_irqs/{irq}"), "msix\n");
            put(&format!("proc/irq/{irq}/smp_affinity_list"), "0-7\n");
        }
        put("proc/irq/42/smp_affinity_list", "0-7\n");
        let allowed = || {
            [40, 41, 42].map(|irq| {
                fs::read_to_string(root.join(format!("proc/irq/{irq}/smp_affinity_list"))).unwrap()
            })
        };
        deliver(root, address, 2).unwrap();
        assert_eq!(allowed(), ["2", "2", "0-7\n"], "those of this device, and nobody else's");
        put("proc/irq/41/smp_affinity_list", "5\n");
        deliver(root, address, 2).unwrap();
        assert_eq!(allowed(), ["2", "2", "0-7\n"], "moved away, and back again");
        put("proc/irq/40/effective_affinity_list", "3\n");
        put("proc/irq/41/effective_affinity_list", "3\n");
        deliver(root, address, 3).unwrap();
        assert!(deliver(root, address, 4).unwrap_err().to_string().contains("still goes to CPU 3"));
    }
}
