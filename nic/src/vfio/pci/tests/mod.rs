//! The binding of devices on machines that are folders.

mod binding;
mod failures;
mod host;
mod texts;
