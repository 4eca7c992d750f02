//! The collector alone.

fn main() -> std::process::ExitCode {
    pegasus_server::main(Some(pegasus_server::Role::Collector))
}
