//! TensorBoard event files: length-framed records with checksums, each one an `Event` message of
//! protocol buffers, encoded by hand. Writes only; what the numbers mean is the caller's.

use super::out_dir::OutDir;
use crate::base::{Error, Result, machine_name};
use crc32c::crc32c;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Appends events to a file of its own.
#[derive(Debug)]
pub struct EventWriter {
    out: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Creates a new event file in `dir`; TensorBoard joins the files of one directory, so a
    /// resumed run just adds another.
    pub fn create(dir: &OutDir) -> Result<EventWriter> {
        let (seconds, pid) = (wall_time() as u64, std::process::id());
        let host = machine_name().replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
        for n in 0.. {
            let name = format!("events.out.tfevents.{seconds}.{host}.{pid}.{n}");
            let Some(file) = dir.new_file(&name, &name)? else { continue };
            let path = dir.path().join(name);
            let mut writer = EventWriter { out: BufWriter::new(file), path };
            let mut event = Message::default();
            event.double(1, wall_time());
            event.bytes(3, b"brain.Event:2");
            writer.record(&event.0)?;
            writer.flush()?;
            return Ok(writer);
        }
        Err(Error::internal("no free event file name"))
    }

    /// The file written to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one number. Buffered until [`EventWriter::flush`].
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<()> {
        let mut summary = Message::default();
        summary.bytes(1, tag.as_bytes());
        summary.float(2, value);
        self.summary(step, &summary)
    }

    /// Adds one text, shown as Markdown in TensorBoard's text tab. Buffered likewise.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        let (mut plugin, mut metadata) = (Message::default(), Message::default());
        plugin.bytes(1, b"text");
        metadata.bytes(1, &plugin.0);
        let (mut dim, mut shape, mut tensor) =
            (Message::default(), Message::default(), Message::default());
        dim.varint(1, 1);
        shape.bytes(2, &dim.0);
        tensor.varint(1, DT_STRING);
        tensor.bytes(2, &shape.0);
        tensor.bytes(8, text.as_bytes());
        let mut summary = Message::default();
        summary.bytes(1, tag.as_bytes());
        summary.bytes(8, &tensor.0);
        summary.bytes(9, &metadata.0);
        self.summary(step, &summary)
    }

    /// Hands everything to the operating system, so that a reader sees it.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| Error::io("write", &self.path, &e))
    }

    fn summary(&mut self, step: u64, value: &Message) -> Result<()> {
        let (mut summary, mut event) = (Message::default(), Message::default());
        summary.bytes(1, &value.0);
        event.double(1, wall_time());
        event.varint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    /// One record: length, its checksum, data, its checksum.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked(crc32c(&length)).to_le_bytes());
        frame.extend_from_slice(data);
        frame.extend_from_slice(&masked(crc32c(data)).to_le_bytes());
        self.out.write_all(&frame).map_err(|e| Error::io("write", &self.path, &e))
    }
}

/// `DT_STRING` of TensorFlow's DataType.
const DT_STRING: u64 = 7;

/// The record format's masking, so that a checksum of data holding checksums is no special case.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970. TensorBoard wants the date, so this is not the monotonic clock.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A protocol-buffer message being encoded, field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.0.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.0.push(x as u8);
    }

    fn varint(&mut self, field: u64, x: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(x);
    }

    fn double(&mut self, field: u64, x: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend_from_slice(&x.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, data: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(data.len() as u64);
        self.0.extend_from_slice(data);
    }

    fn float(&mut self, field: u64, x: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend_from_slice(&x.to_le_bytes());
    }
}
