//! Thrift's binary protocol as Pegasus uses it: big-endian, and with values whose field header says "struct"
//! although they are raw (wire-protocol.md 4.1). Decoding copies no bytes: blobs are slices of the frame.

use bytes::{BufMut, Bytes, BytesMut};

mod value;

pub(crate) use value::wire_struct;
pub use value::{ErrorName, Value, WireGpid};

/// Thrift's type bytes.
pub mod ty {
    pub const STOP: u8 = 0;
    pub const BOOL: u8 = 2;
    pub const I8: u8 = 3;
    pub const DOUBLE: u8 = 4;
    pub const I16: u8 = 6;
    pub const I32: u8 = 8;
    pub const I64: u8 = 10;
    pub const STRING: u8 = 11;
    pub const STRUCT: u8 = 12;
    pub const MAP: u8 = 13;
    pub const SET: u8 = 14;
    pub const LIST: u8 = 15;
}

/// Most fields and list elements in one frame; without a bound a 64 MiB frame of empty elements would become gigabytes
/// of structs. The largest real one has three of them per record, and [`MAX_ELEMENTS`] records.
const MAX_ITEMS: u32 = 1 << 18;
/// Most elements of one list. Each is executed, so a message of a megabyte must not bring a million of them: that
/// stopped a node for seconds. A key-value with both of its fields takes 15 bytes and its key, so the longest write
/// (1 MiB) has fewer; reads have at most some thousand keys.
const MAX_ELEMENTS: usize = 1 << 16;
/// How deep unknown fields may nest before the frame is refused. Nothing of Pegasus goes deeper than 4.
const MAX_SKIP_DEPTH: u32 = 16;

/// Why bytes are not what they claim to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("ends inside a value")]
    Truncated,
    #[error("negative or impossible length {0}")]
    BadLength(i32),
    #[error("more than {MAX_ITEMS} fields and list elements, or more than {MAX_ELEMENTS} in one list")]
    TooManyItems,
    #[error("nested deeper than {MAX_SKIP_DEPTH}")]
    TooDeep,
    #[error("unknown thrift type {0}")]
    BadType(u8),
    #[error("text that is not UTF-8")]
    BadText,
    #[error("no argument in the message")]
    NoArgument,
}

/// Reads values from one frame.
#[derive(Debug)]
pub struct Reader {
    frame: Bytes,
    at: usize,
    items_left: u32,
}

impl Reader {
    pub fn new(frame: Bytes) -> Self {
        Self { frame, at: 0, items_left: MAX_ITEMS }
    }

    pub fn remaining(&self) -> usize {
        self.frame.len() - self.at
    }

    pub fn advance(&mut self, bytes: usize) -> Result<(), DecodeError> {
        if bytes > self.remaining() {
            return Err(DecodeError::Truncated);
        }
        self.at += bytes;
        Ok(())
    }

    fn item(&mut self) -> Result<(), DecodeError> {
        self.items_left = self.items_left.checked_sub(1).ok_or(DecodeError::TooManyItems)?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = *self.frame[self.at..].first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.at += N;
        Ok(bytes)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn i16(&mut self) -> Result<i16, DecodeError> {
        self.array().map(i16::from_be_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A length, checked against what is left of the frame when every unit takes `unit` bytes at least.
    fn length(&mut self, unit: usize) -> Result<usize, DecodeError> {
        let raw = self.i32()?;
        let len = usize::try_from(raw).map_err(|_| DecodeError::BadLength(raw))?;
        if len.saturating_mul(unit) > self.remaining() { Err(DecodeError::Truncated) } else { Ok(len) }
    }

    /// Length-prefixed bytes, without keeping the frame alive.
    pub fn bytes(&mut self) -> Result<&[u8], DecodeError> {
        let len = self.length(1)?;
        let from = self.at;
        self.at += len;
        Ok(&self.frame[from..self.at])
    }

    /// Length-prefixed bytes as a slice of the frame.
    pub fn blob(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.length(1)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let from = self.at;
        self.at += len;
        Ok(self.frame.slice(from..self.at))
    }

    /// Next field header of a struct: (type, id), None at its end.
    pub fn field(&mut self) -> Result<Option<(u8, i16)>, DecodeError> {
        match self.u8()? {
            ty::STOP => Ok(None),
            ty => {
                self.item()?;
                Ok(Some((ty, self.i16()?)))
            }
        }
    }

    /// Reads a known field into `slot`; one with another type than expected is skipped, as thrift does.
    pub fn take<T: Value>(&mut self, slot: &mut T, ty: u8) -> Result<(), DecodeError> {
        if ty == T::TYPE {
            *slot = T::read(self)?;
            Ok(())
        } else {
            self.skip(ty)
        }
    }

    /// Skips a value of an unknown field. Wrong for Pegasus's raw values, which look like structs: known
    /// fields of that kind must be read.
    pub fn skip(&mut self, ty: u8) -> Result<(), DecodeError> {
        self.skip_nested(ty, 0)
    }

    fn skip_nested(&mut self, ty: u8, depth: u32) -> Result<(), DecodeError> {
        if depth > MAX_SKIP_DEPTH {
            return Err(DecodeError::TooDeep);
        }
        self.item()?;
        match ty {
            ty::BOOL | ty::I8 => self.u8().map(drop),
            ty::I16 => self.i16().map(drop),
            ty::I32 => self.i32().map(drop),
            ty::I64 | ty::DOUBLE => self.i64().map(drop),
            ty::STRING => self.bytes().map(drop),
            ty::STRUCT => {
                while let Some((ty, _)) = self.field()? {
                    self.skip_nested(ty, depth + 1)?;
                }
                Ok(())
            }
            ty::LIST | ty::SET => {
                let element = self.u8()?;
                for _ in 0..self.length(1)? {
                    self.skip_nested(element, depth + 1)?;
                }
                Ok(())
            }
            ty::MAP => {
                let (key, value) = (self.u8()?, self.u8()?);
                for _ in 0..self.length(2)? {
                    self.skip_nested(key, depth + 1)?;
                    self.skip_nested(value, depth + 1)?;
                }
                Ok(())
            }
            other => Err(DecodeError::BadType(other)),
        }
    }
}

/// Appends values to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    pub buf: &'a mut BytesMut,
    /// Recorded clients leave fields out that others write; the vectors say which, struct by struct.
    #[cfg(test)]
    pub present: Option<std::collections::VecDeque<u64>>,
}

impl<'a> Writer<'a> {
    pub fn new(buf: &'a mut BytesMut) -> Self {
        Self {
            buf,
            #[cfg(test)]
            present: None,
        }
    }

    /// Which field ids of the struct that begins here are written.
    #[cfg(not(test))]
    pub const fn begin(&mut self) -> u64 {
        u64::MAX
    }

    #[cfg(test)]
    pub fn begin(&mut self) -> u64 {
        self.present.as_mut().map_or(u64::MAX, |masks| masks.pop_front().expect("a mask per struct"))
    }

    /// Writes a field with its header, unless it is absent.
    pub fn field<T: Value>(&mut self, id: i16, value: &T, present: u64) {
        if value.is_present() && present & (1 << id) != 0 {
            self.header(T::TYPE, id);
            value.write(self);
        }
    }

    pub fn header(&mut self, ty: u8, id: i16) {
        let id = id.to_be_bytes();
        self.buf.put_slice(&[ty, id[0], id[1]]);
    }

    pub fn stop(&mut self) {
        self.buf.put_u8(ty::STOP);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.len(bytes.len());
        // For the rest of an answer too: a few bytes more would double the buffer of a large value.
        self.buf.reserve(bytes.len() + 256);
        self.buf.put_slice(bytes);
    }

    fn len(&mut self, len: usize) {
        self.buf.put_i32(i32::try_from(len).expect("frames are bounded far below 2 GiB"));
    }
}
