//! Checks, prepares and restores machines that are folders of files.
#![forbid(unsafe_code)]

mod checks;
mod machine;
mod stages;
