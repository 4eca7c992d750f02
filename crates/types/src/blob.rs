//! Byte fields that are decoded without copying them.
//!
//! serde hands a decoder `&[u8]`, so `Bytes` fields are normally copied out of the frame that carried them.
//! A field marked `#[serde(with = "crate::blob")]` becomes a slice of that frame instead, when the frame was
//! named through [`decode_within`]. Without it the field is copied, so other decoders work as usual.
//!
//! A slice keeps the whole receive buffer alive that it was cut from (tens of KiB for a small value): hand it
//! on, append it to a log, but copy it before keeping it for long.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;

thread_local! {
    static FRAME: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Runs `decode`; marked fields that it reads out of `frame` become slices of it.
pub fn decode_within<T>(frame: &Bytes, decode: impl FnOnce() -> T) -> T {
    /// Puts the outer frame back, also when `decode` unwinds.
    struct Restore(Option<Bytes>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FRAME.with(|current| current.replace(self.0.take()));
        }
    }
    let _restore = Restore(FRAME.with(|current| current.replace(Some(frame.clone()))));
    decode()
}

pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    deserializer.deserialize_bytes(BlobVisitor)
}

struct BlobVisitor;

impl<'de> Visitor<'de> for BlobVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Bytes, E> {
        Ok(FRAME.with_borrow(|frame| match frame {
            Some(frame) if contains(frame, bytes) => frame.slice_ref(bytes),
            _ => Bytes::copy_from_slice(bytes),
        }))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(Bytes::from(bytes))
    }
}

/// Does `part` lie in the memory of `whole`? `slice_ref` would panic otherwise.
fn contains(whole: &Bytes, part: &[u8]) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}
