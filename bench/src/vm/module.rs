//! Modules of the guest's kernel: unpacked, each behind those it depends on, as its own `.modinfo` names them. depmod's list is made
//! when a kernel is installed, which these are not.
#![forbid(unsafe_code)]

use super::VmError;
use super::error::cannot;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A module to be loaded.
pub(super) struct Module {
    /// As its file is called.
    pub(super) name: String,
    pub(super) parameters: String,
    pub(super) bytes: Vec<u8>,
}

/// A module's file below the folder of a kernel; `None` where the kernel has it built in, or not at all.
pub(super) fn find(kernel: &Path, name: &str) -> Option<PathBuf> {
    let wanted = plain(name);
    let mut folders: Vec<PathBuf> =
        ["lib/modules", "usr/lib/modules", "modules"].iter().map(|folder| kernel.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let stem = file.to_str().and_then(|file| file.split_once(".ko")).map(|(stem, _)| stem);
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if stem.is_some_and(|stem| plain(stem) == wanted) {
                return Some(entry.path());
            }
        }
    }
    None
}

/// Those of these names (each may have parameters behind it) that are not built in, with what they depend on, in the order of loading.
pub(super) fn resolve(kernel: &Path, busybox: &Path, wanted: &[String]) -> Result<Vec<Module>, VmError> {
    let mut found = Vec::new();
    for module in wanted {
        let (name, parameters) = module.split_once(' ').unwrap_or((module, ""));
        add(kernel, busybox, (name, parameters), &mut found)?;
    }
    Ok(found)
}

fn add(
    kernel: &Path,
    busybox: &Path,
    (name, parameters): (&str, &str),
    found: &mut Vec<Module>,
) -> Result<(), VmError> {
    let Some(file) = find(kernel, name) else { return Ok(()) };
    if found.iter().any(|module| plain(&module.name) == plain(name)) {
        return Ok(());
    }
    let bytes = unpacked(busybox, &file)?;
    for dependency in dependencies(&bytes) {
        add(kernel, busybox, (&dependency, ""), found)?;
    }
    found.push(Module { name: name.to_owned(), parameters: parameters.to_owned(), bytes });
    Ok(())
}

/// The kernel takes - and _ for the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn unpacked(busybox: &Path, file: &Path) -> Result<Vec<u8>, VmError> {
    let applet = match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(file).map_err(cannot("read", file)),
        Some("xz") => "unxz",
        Some("gz") => "gunzip",
        _ => return Err(VmError::Invalid(format!("{}: packed neither by xz nor by gzip", file.display()))),
    };
    let output = Command::new(busybox)
        .args([applet, "-c"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(cannot("start", busybox))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(VmError::Invalid(format!("{}: {why}", file.display())));
    }
    Ok(output.stdout)
}

/// What `depends=` says among the strings of a module's `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(list).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str, modules: &[(&str, &str)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("isoplane-modules-{}-{name}", std::process::id()));
        let below = folder.join("modules/kernel/drivers");
        fs::create_dir_all(&below).unwrap();
        for (name, depends) in modules {
            let bytes = format!("ELF\0license=GPL\0depends={depends}\0retpoline=Y\0");
            fs::write(below.join(format!("{name}.ko")), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn modules_come_behind_what_they_depend_on_and_once() {
        let modules = [
            ("vfio", ""),
            ("vfio-pci-core", "vfio,irqbypass"),
            ("vfio-pci", "vfio-pci-core,vfio"),
            ("vfio_iommu_type1", "vfio"),
        ];
        let folder = folder("order", &modules);
        let wanted =
            ["vfio_pci", "vfio-iommu-type1 allow_unsafe_interrupts=1", "built-in"].map(str::to_owned);
        let found = resolve(&folder, Path::new("busybox"), &wanted).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let names: Vec<&str> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["vfio", "vfio-pci-core", "vfio_pci", "vfio-iommu-type1"]);
        assert_eq!(found[3].parameters, "allow_unsafe_interrupts=1");
    }

    #[test]
    fn a_module_that_depends_on_nothing_has_no_dependency() {
        assert!(dependencies(b"\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
        assert_eq!(dependencies(b"x\0depends=a,b-c\0"), ["a", "b-c"]);
    }
}
