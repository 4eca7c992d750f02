//! The Pegasus client protocol: bytes ↔ typed requests and responses (wire-protocol.md).
//!
//! [`frame`] knows how frames lie in the stream, [`thrift`] how values are written, [`data`] and [`meta`] which
//! fields a message has, [`request`] which message belongs to which RPC name. [`server`] speaks it on an
//! accepted connection, [`client`] on a dialled one.

pub mod client;
pub mod codes;
pub mod data;
pub mod frame;
pub mod meta;
pub mod request;
pub mod server;
pub mod thrift;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod vector_tests;

pub use client::{CallError, Connection};
pub use codes::Rpc;
pub use frame::{HeaderVersion, MAX_FRAME_BYTES, Refusal, RequestHead};
pub use request::{AdminRequest, AdminResponse, Request, Response};
pub use server::{ClientService, Limits, ReplyTo};
pub use thrift::{DecodeError, ErrorName, WireGpid};
