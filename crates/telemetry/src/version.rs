//! What this build is.

/// Release of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit of the source, when the build was told (`PEGASUS_GIT_COMMIT`).
pub const GIT_COMMIT: &str = match option_env!("PEGASUS_GIT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Of the compiler's profile.
pub const BUILD_TYPE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

/// One line for `--version` and the log.
pub fn line() -> String {
    format!("Pegasus Server {VERSION} ({GIT_COMMIT}) {BUILD_TYPE}")
}
