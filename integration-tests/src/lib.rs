//! Whole clusters as child processes; see the tests.
