//! At most one host serves a partition at any instant (design.md 4.3).

use pegasus_types::Gpid;

use crate::bus::Micros;
use crate::host::Host;

/// Gives whether anybody serves.
pub fn check(now: Micros, hosts: &[Host], gpid: Gpid) -> Result<bool, String> {
    let mut serving = hosts.iter().filter(|host| host.serving(now, gpid));
    let first = serving.next();
    match serving.next() {
        None => Ok(first.is_some()),
        Some(second) => {
            let first = first.map_or("", |h| h.node.as_str());
            Err(format!("two serving primaries of {gpid}: {first} and {}", second.node))
        }
    }
}
