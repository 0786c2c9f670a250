//! Memory, streams, graphs and errors, on the emulated device.

use crate::device::cuda::corpus;
use crate::device::cuda::params::AddParams;
use crate::device::{Buffer, Device, Region};

/// Work of these tests.
macro_rules! work {
    ($work:expr) => {
        // SAFETY: the kernels and copies of these tests are of memory as long as their parameters
        // say, which lives until the test has read what it is about.
        unsafe { $work }
    };
}

fn floats(buffer: &Buffer) -> Vec<f32> {
    let mut bytes = vec![0; buffer.bytes()];
    buffer.read(0, &mut bytes).unwrap();
    bytemuck::allocation::pod_collect_to_vec(&bytes)
}

fn filled(values: &[f32]) -> Buffer {
    let buffer = Buffer::zeroed(Device::Emulated, values.len() * 4).unwrap();
    buffer.write(0, bytemuck::cast_slice(values)).unwrap();
    buffer
}

#[test]
fn memory_is_zeroed_and_read_back() {
    let buffer = Buffer::zeroed(Device::Emulated, 100).unwrap();
    let mut bytes = [1u8; 100];
    buffer.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 100]);
    buffer.write(7, &[1, 2, 3]).unwrap();
    buffer.read(6, &mut bytes[..5]).unwrap();
    assert_eq!(bytes[..5], [0, 1, 2, 3, 0]);
    let other = Buffer::zeroed(Device::Emulated, 100).unwrap();
    let stream = Device::Emulated.stream().unwrap();
    stream.copy(other.slice(50, 10), buffer.slice(5, 10)).unwrap();
    other.read(50, &mut bytes[..10]).unwrap();
    assert_eq!(bytes[..10], [0, 0, 1, 2, 3, 0, 0, 0, 0, 0]);
}

#[test]
fn copies_from_locked_pages_come_beside_the_work_and_before_what_follows() {
    let from = Buffer::locked(Device::Emulated, 1200).unwrap();
    assert_eq!(from.device(), Device::Cpu);
    from.write(0, bytemuck::cast_slice(&[2.5f32; 300])).unwrap();
    let (to, sum) = (filled(&[1.0; 300]), filled(&[0.5; 300]));
    let upload = work!(Device::Emulated.upload(to.region(), &from)).unwrap();
    upload.wait().unwrap();
    let (a, b) = (to.region().address(), sum.region().address());
    let params = AddParams { a, b, y: b, n: 300, flags: 0, pad: 0 };
    let stream = Device::Emulated.stream().unwrap();
    work!(stream.launch("add_f32", [2, 1, 1], 256, 0, &params)).unwrap();
    assert_eq!(floats(&sum), [3.0; 300]);
    from.write(0, bytemuck::cast_slice(&[4.0f32; 300])).unwrap();
    work!(Device::Emulated.upload(to.region(), &from)).unwrap().finish().unwrap();
    assert_eq!(floats(&to), [4.0; 300]);
    // Of another length, and of memory that is not the host's.
    assert!(work!(Device::Emulated.upload(to.slice(0, 8), &from)).is_err());
    assert!(work!(Device::Emulated.upload(to.region(), &sum)).is_err());
    // Pages that are given back may be locked again.
    assert!(stream.lock_pages(sum.region()) && !stream.lock_pages(sum.region()));
    stream.unlock_pages(sum.region());
    assert!(stream.lock_pages(sum.region()));
    stream.unlock_pages(sum.region());
    let (ptr, bytes) = (from.region().ptr(), from.bytes());
    drop(from);
    // SAFETY: locking reads and writes nothing.
    let again = unsafe { Region::new(Device::Cpu, ptr, bytes) };
    assert!(stream.lock_pages(again), "unlocked before they were given back");
    stream.unlock_pages(again);
}

#[test]
fn a_graph_runs_when_it_is_replayed_and_only_then() {
    let (from, to) = (filled(&[1.0; 300]), filled(&[0.5; 300]));
    let stream = Device::Emulated.stream().unwrap();
    let (a, b) = (from.region().address(), to.region().address());
    let params = AddParams { a, b, y: b, n: 300, flags: 0, pad: 0 };
    let (graph, ()) = stream
        .capture(|| {
            work!(stream.launch("add_f32", [2, 1, 1], 256, 0, &params))?;
            stream.copy(from.region(), to.region())
        })
        .unwrap();
    assert_eq!(floats(&to), [0.5; 300]);
    for _ in 0..3 {
        work!(stream.replay(&graph)).unwrap();
    }
    // x <- y + x, y <- x: 1.5, 3, 6.
    assert_eq!(floats(&to), [6.0; 300]);
    assert_eq!(floats(&from), [6.0; 300]);
}

#[test]
fn events_order_and_time() {
    let stream = Device::Emulated.stream().unwrap();
    let first = stream.record().unwrap();
    stream.wait(&first).unwrap();
    let second = stream.record().unwrap();
    assert!(second.since(&first).unwrap() >= 0.0);
}

#[test]
fn an_unknown_kernel_and_a_wrong_block_are_errors() {
    let stream = Device::Emulated.stream().unwrap();
    let params = AddParams { a: 0, b: 0, y: 0, n: 0, flags: 0, pad: 0 };
    let e = work!(stream.launch("no_such_kernel", [1, 1, 1], 32, 0, &params)).unwrap_err();
    assert!(e.to_string().contains("no_such_kernel"), "{e}");
    assert!(work!(stream.launch("add_f32", [1, 1, 1], 1024, 0, &params)).is_err());
    assert!(work!(stream.launch("add_f32", [0, 1, 1], 256, 0, &params)).is_ok());
}

#[test]
fn every_instruction_does_what_its_manual_says() {
    for seed in 0..20 {
        assert_eq!(corpus::check(Device::Emulated, seed).unwrap().len(), 8);
    }
}
