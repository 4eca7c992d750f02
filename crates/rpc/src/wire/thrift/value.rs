//! What can stand in a thrift struct, and how it is written.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use pegasus_types::{ErrorCode, Gpid};

use super::{DecodeError, MAX_ELEMENTS, Reader, Writer, ty};

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
        crate::wire::vector_tests::unhex(json["hex"].as_str().unwrap())
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
        if len > MAX_ELEMENTS {
            return Err(DecodeError::TooManyItems);
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
