//! State and event in, effects out: the core of one node `a`, its peers played by the test.

mod failing;
mod learning;
mod leases;
mod membership;
mod rig;
mod schedules;
mod writes;
