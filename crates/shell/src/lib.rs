//! `pegasus_shell`: what an operator and a curious user type.
//!
//! | word | meaning |
//! |---|---|
//! | command | one line: a name, words, one-letter flags; a row of [`commands::COMMANDS`] |
//! | session | the cluster, the table in use, how to print |
//! | escaped | bytes as text: printable ASCII as it is, all else as `\xHH`, for input and output |
//!
//! ```text
//!  argv or line --words--> commands::find --> run(&mut Session, Args, &mut Output) --> text or JSON
//!                                                  | pegasus_client
//! ```
//!
//! Interactive (`repl`), one command (`pegasus_shell get temp h s`), or lines on standard input.

pub mod args;
pub mod commands;
pub mod output;
pub mod repl;
pub mod session;
pub mod words;
