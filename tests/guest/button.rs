//! The power button, as `virsh shutdown` presses it: whoever presses it wants the guest to power itself off.

use std::fs::File;
use std::io::Read;

/// `struct input_event`: a time of two words, type, code and value.
const EVENT: usize = 24;
/// `EV_KEY`.
const KEY: u16 = 1;
/// `KEY_POWER`.
const POWER: u16 = 116;

/// Listens to every input device that there is, each in a thread of its own.
pub fn start() {
    let devices = std::fs::read_dir("/dev/input").into_iter().flatten().flatten();
    for device in devices.filter(|device| device.file_name().to_string_lossy().starts_with("event")) {
        std::thread::spawn(move || listen(File::open(device.path())));
    }
}

fn listen(device: std::io::Result<File>) {
    let Ok(mut device) = device else { return };
    let mut event = [0; EVENT];
    while device.read_exact(&mut event).is_ok() {
        let kind = u16::from_ne_bytes([event[16], event[17]]);
        let code = u16::from_ne_bytes([event[18], event[19]]);
        let pressed = event[20..] == 1_i32.to_ne_bytes();
        if kind == KEY && code == POWER && pressed {
            println!("drover-guest: the power button was pressed");
            power_off();
        }
    }
}

/// Ends the guest, at once.
pub fn power_off() {
    let _ = std::process::Command::new("/bin/busybox")
        .args(["poweroff", "-f"])
        .status();
}
