//! Thrift's binary protocol as Pegasus uses it: big-endian, and with values whose field header says "struct"
//! although they are raw (wire-protocol.md 4.1). Decoding copies no bytes: blobs are slices of the frame.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use pegasus_types::{ErrorCode, Gpid};

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

/// Most fields and list elements in one frame. A real one has a few fields per record and at most some
/// thousand records; without a bound a 64 MiB frame of empty elements would become gigabytes of structs.
const MAX_ITEMS: u32 = 1 << 20;
/// How deep unknown fields may nest before the frame is refused. Nothing of Pegasus goes deeper than 4.
const MAX_SKIP_DEPTH: u32 = 16;

/// Why bytes are not what they claim to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("ends inside a value")]
    Truncated,
    #[error("negative or impossible length {0}")]
    BadLength(i32),
    #[error("more than {MAX_ITEMS} fields and list elements")]
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
        self.buf.put_slice(bytes);
    }

    fn len(&mut self, len: usize) {
        self.buf.put_i32(i32::try_from(len).expect("frames are bounded far below 2 GiB"));
    }
}

/// Something with a place in a thrift struct.
pub trait Value: Default {
    const TYPE: u8;
    /// Fewest bytes on the wire: bounds what a claimed list length may reserve.
    const MIN_BYTES: usize = 1;

    fn read(r: &mut Reader) -> Result<Self, DecodeError>;
    fn write(&self, w: &mut Writer<'_>);

    fn is_present(&self) -> bool {
        true
    }

    /// From the plain form in the recorded vectors; pushes the fields that are there, struct by struct.
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, present: &mut Vec<u64>) -> Self;
}

macro_rules! number {
    ($($t:ty: $code:expr, $read:ident, $put:ident;)*) => {$(
        impl Value for $t {
            const TYPE: u8 = $code;
            const MIN_BYTES: usize = size_of::<$t>();
            fn read(r: &mut Reader) -> Result<Self, DecodeError> {
                r.$read()
            }
            fn write(&self, w: &mut Writer<'_>) {
                w.buf.$put(*self);
            }
            #[cfg(test)]
            fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
                <$t>::try_from(json.as_i64().unwrap()).unwrap()
            }
        }
    )*};
}

number! {
    i32: ty::I32, i32, put_i32;
    i64: ty::I64, i64, put_i64;
}

impl Value for bool {
    const TYPE: u8 = ty::BOOL;
    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(r.u8()? != 0)
    }
    fn write(&self, w: &mut Writer<'_>) {
        w.buf.put_u8(u8::from(*self));
    }
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        json.as_bool().unwrap()
    }
}

/// Pegasus's blob: says struct, is length and bytes.
impl Value for Bytes {
    const TYPE: u8 = ty::STRUCT;
    const MIN_BYTES: usize = 4;
    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        r.blob()
    }
    fn write(&self, w: &mut Writer<'_>) {
        w.bytes(self);
    }
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        super::vector_tests::unhex(json["hex"].as_str().unwrap())
    }
}

impl Value for String {
    const TYPE: u8 = ty::STRING;
    const MIN_BYTES: usize = 4;
    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        std::str::from_utf8(r.bytes()?).map(str::to_owned).map_err(|_| DecodeError::BadText)
    }
    fn write(&self, w: &mut Writer<'_>) {
        w.bytes(self.as_bytes());
    }
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        json.as_str().unwrap().to_owned()
    }
}

impl<T: Value> Value for Option<T> {
    const TYPE: u8 = T::TYPE;
    const MIN_BYTES: usize = T::MIN_BYTES;
    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        T::read(r).map(Some)
    }
    fn write(&self, w: &mut Writer<'_>) {
        if let Some(value) = self {
            value.write(w);
        }
    }
    fn is_present(&self) -> bool {
        self.is_some()
    }
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, present: &mut Vec<u64>) -> Self {
        Some(T::from_json(json, present))
    }
}

impl<T: Value> Value for Vec<T> {
    const TYPE: u8 = ty::LIST;
    const MIN_BYTES: usize = 5;

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        let element = r.u8()?;
        let len = r.length(T::MIN_BYTES)?;
        if element != T::TYPE && len > 0 {
            return Err(DecodeError::BadType(element));
        }
        let len_u32 = u32::try_from(len).map_err(|_| DecodeError::TooManyItems)?;
        r.items_left = r.items_left.checked_sub(len_u32).ok_or(DecodeError::TooManyItems)?;
        let mut list = Self::with_capacity(len);
        for _ in 0..len {
            list.push(T::read(r)?);
        }
        Ok(list)
    }

    fn write(&self, w: &mut Writer<'_>) {
        w.buf.put_u8(T::TYPE);
        w.len(self.len());
        for value in self {
            value.write(w);
        }
    }

    #[cfg(test)]
    fn from_json(json: &serde_json::Value, present: &mut Vec<u64>) -> Self {
        json.as_array().unwrap().iter().map(|element| T::from_json(element, present)).collect()
    }
}

/// map<string, string>
impl Value for BTreeMap<String, String> {
    const TYPE: u8 = ty::MAP;
    const MIN_BYTES: usize = 6;

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        let types = (r.u8()?, r.u8()?);
        let len = r.length(2 * String::MIN_BYTES)?;
        if types != (ty::STRING, ty::STRING) && len > 0 {
            return Err(DecodeError::BadType(types.0));
        }
        let mut map = Self::new();
        for _ in 0..len {
            r.item()?;
            map.insert(String::read(r)?, String::read(r)?);
        }
        Ok(map)
    }

    fn write(&self, w: &mut Writer<'_>) {
        w.buf.put_slice(&[ty::STRING, ty::STRING]);
        w.len(self.len());
        for (key, value) in self {
            key.write(w);
            value.write(w);
        }
    }

    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        json.as_object().unwrap().iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }
}

/// An error name inside a result: says struct, is a string. A name that we do not know reads as ERR_UNKNOWN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorName(pub ErrorCode);

impl Default for ErrorName {
    fn default() -> Self {
        Self(ErrorCode::Ok)
    }
}

impl Value for ErrorName {
    const TYPE: u8 = ty::STRUCT;
    const MIN_BYTES: usize = 4;
    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        let name = std::str::from_utf8(r.bytes()?).map_err(|_| DecodeError::BadText)?;
        Ok(Self(name.parse().unwrap_or(ErrorCode::Unknown)))
    }
    fn write(&self, w: &mut Writer<'_>) {
        w.bytes(self.0.name().as_bytes());
    }
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        Self(json.as_str().unwrap().parse().unwrap())
    }
}

/// Says struct, is an i64: partition index above, app id below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireGpid(pub Gpid);

impl Default for WireGpid {
    fn default() -> Self {
        Self(Gpid::new(0, 0))
    }
}

impl Value for WireGpid {
    const TYPE: u8 = ty::STRUCT;
    const MIN_BYTES: usize = 8;
    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        let index = r.i32()?;
        Ok(Self(Gpid::new(r.i32()?, index)))
    }
    fn write(&self, w: &mut Writer<'_>) {
        w.buf.put_i32(self.0.index);
        w.buf.put_i32(self.0.app_id);
    }
    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        let number = |i: usize| i32::try_from(json[i].as_i64().unwrap()).unwrap();
        Self(Gpid::new(number(0), number(1)))
    }
}

/// Derives [`Value`] for a plain struct from its field ids. `ignoring` lists fields that other Pegasus servers
/// send, whose raw values a generic skipper would misread, and that we neither need nor ever write.
macro_rules! wire_struct {
    ($($name:ident { $($id:literal $field:ident),* $(,)? $(; ignoring $($skip_id:literal $skip:ty),*)? })*) => {$(
        impl $crate::wire::thrift::Value for $name {
            const TYPE: u8 = $crate::wire::thrift::ty::STRUCT;

            fn read(
                r: &mut $crate::wire::thrift::Reader,
            ) -> Result<Self, $crate::wire::thrift::DecodeError> {
                #[allow(unused_mut, reason = "not every struct has fields")]
                let mut this = Self::default();
                while let Some((ty, id)) = r.field()? {
                    match id {
                        $($id => r.take(&mut this.$field, ty)?,)*
                        $($($skip_id => r.take(&mut <$skip>::default(), ty)?,)*)?
                        _ => r.skip(ty)?,
                    }
                }
                Ok(this)
            }

            fn write(&self, w: &mut $crate::wire::thrift::Writer<'_>) {
                let _present = w.begin();
                $(w.field($id, &self.$field, _present);)*
                w.stop();
            }

            #[cfg(test)]
            fn from_json(json: &serde_json::Value, present: &mut Vec<u64>) -> Self {
                #[allow(unused_mut, reason = "not every struct has fields")]
                let mut this = Self::default();
                let known: &[&str] = &[$(stringify!($field)),*];
                for key in json.as_object().unwrap().keys() {
                    assert!(key.starts_with("hp_") || known.contains(&key.as_str()), "unknown field {key}");
                }
                let _mask = present.len();
                present.push(0);
                $(if let Some(value) = json.get(stringify!($field)).filter(|value| !value.is_null()) {
                    present[_mask] |= 1 << $id;
                    this.$field = $crate::wire::thrift::Value::from_json(value, present);
                })*
                this
            }
        }
    )*};
}
pub(crate) use wire_struct;
