//! GPUs by the names that CUDA has for them.
//!
//! In bubblewrap only some `/dev/nvidiaN` are there, and CUDA counts those that it finds from 0: the machine's
//! numbers would be wrong. UUIDs are right inside and outside.

use std::fs;
use std::path::Path;

/// One folder per GPU. Source: NVIDIA's driver README, "/proc interface".
const INFORMATION: &str = "/proc/driver/nvidia/gpus";

/// What `CUDA_VISIBLE_DEVICES` says for these devices: UUIDs if the machine tells all of them, else numbers.
pub(super) fn visible(devices: &[u32]) -> String {
    visible_in(Path::new(INFORMATION), devices)
}

fn visible_in(information: &Path, devices: &[u32]) -> String {
    let entries = fs::read_dir(information).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path().join("information")).ok());
    let gpus: Vec<(u32, String)> = texts.filter_map(|text| gpu(&text)).collect();
    let uuid = |device: &u32| gpus.iter().find(|(minor, _)| minor == device).map(|(_, uuid)| uuid.clone());
    // CUDA stops reading at the first name that it does not understand: one kind or the other.
    let uuids: Option<Vec<String>> = devices.iter().map(uuid).collect();
    uuids.unwrap_or_else(|| devices.iter().map(u32::to_string).collect()).join(",")
}

/// The N of `/dev/nvidiaN` and the UUID. A GPU that was never opened has question marks for one.
fn gpu(text: &str) -> Option<(u32, String)> {
    let field = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()));
    let minor = field("Device Minor")?.parse().ok()?;
    let uuid = field("GPU UUID")?;
    let digits = uuid.strip_prefix("GPU-")?;
    let whole = digits.len() == 36 && digits.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    whole.then(|| (minor, uuid.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As drivers 470 to 550 write it.
    fn sample(minor: u32, uuid: &str) -> String {
        format!(
            "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 153\nGPU UUID: \t {uuid}\n\
             Video BIOS: \t 96.00.5e.00.01\nBus Type: \t PCIe\nDMA Size: \t 52 bits\n\
             DMA Mask: \t 0xfffffffffffff\nBus Location: \t 0000:{minor:02x}:00.0\nDevice Minor: \t {minor}\n\
             GPU Firmware: \t 535.129.03\nGPU Excluded:\t No\n"
        )
    }

    const FIRST: &str = "GPU-8a3f2c1e-0b4d-4e5f-9a6b-7c8d9e0f1a2b";
    const SECOND: &str = "GPU-11112222-3333-4444-5555-66667777888a";
    const CLOSED: &str = "GPU-????????-????-????-????-????????????";

    fn check(found: &[(u32, &str)], devices: &[u32]) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (minor, uuid) in found {
            // The order of the bus, which is not that of the minors.
            let gpu = folder.path().join(format!("0000:{:02x}:00.0", 255 - minor));
            fs::create_dir(&gpu).expect("a folder");
            fs::write(gpu.join("information"), sample(*minor, uuid)).expect("a file");
        }
        visible_in(folder.path(), devices)
    }

    #[test]
    fn devices_have_their_own_uuids() {
        assert_eq!(check(&[(0, FIRST), (1, SECOND)], &[1, 0]), format!("{SECOND},{FIRST}"));
        assert_eq!(check(&[(0, FIRST), (1, SECOND)], &[1]), SECOND);
        assert_eq!(check(&[(0, FIRST)], &[]), "");
    }

    #[test]
    fn without_all_uuids_numbers_say_it() {
        assert_eq!(check(&[], &[2, 3]), "2,3");
        assert_eq!(check(&[(0, FIRST)], &[0, 1]), "0,1");
        assert_eq!(check(&[(0, CLOSED)], &[0]), "0");
        assert_eq!(visible_in(Path::new("/nowhere"), &[4]), "4");
    }
}
