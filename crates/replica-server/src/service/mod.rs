//! One file per caller.

pub mod client_api;
pub mod entities;
pub mod http;
pub mod peer_api;
pub mod remote_command;
