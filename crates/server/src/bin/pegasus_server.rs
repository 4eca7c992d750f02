//! All roles: `pegasus_server CONFIG -app_list meta,replica,collector`.

fn main() -> std::process::ExitCode {
    pegasus_server::main(None)
}
