//! Every engine applies every decree once, in order (replication.md S8). The engine itself notices.

use pegasus_types::Gpid;

pub fn describe(host: usize, gpid: Gpid, why: &str) -> String {
    format!("decrees out of order at n{} {gpid}: {why}", host + 1)
}
