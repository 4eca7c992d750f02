//! Faults of meta-servers and of a real ZooKeeper: how long until a table can be created again, and whether clients
//! notice on their data.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::part::Rows;

#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Metas {}

pub fn measure() -> Result<Metas> {
    bail!("this part is not built yet")
}

impl Rows for Metas {
    const PART: &'static str = "metas";
    const TITLE: &'static str = "Several meta-servers and ZooKeeper";

    fn text(&self) -> String {
        String::new()
    }

    fn is_kept(&self) -> bool {
        true
    }
}
