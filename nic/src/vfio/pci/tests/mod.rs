//! The binding of devices on machines that are folders.

mod binding;
mod failures;
mod guest;
mod host;
mod texts;
