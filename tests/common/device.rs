//! The device that the tests run on: `DUPLEX_TEST_DEVICE` (cpu, emulated, cuda), else the CPU.

use duplex::device::Device;

/// The device under test.
pub fn device() -> Device {
    match std::env::var("DUPLEX_TEST_DEVICE") {
        Ok(name) => name.parse().unwrap(),
        Err(_) => Device::Cpu,
    }
}
