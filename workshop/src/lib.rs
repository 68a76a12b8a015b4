//! What studies a model, and does not run it for anybody.
//!
//! [`plan`](mod@plan) says beforehand what fits into memory and how fast it will be,
//! [`mod@bench`] measures how fast it is. A [`Trace`] tells which experts a run used:
//! [`comparison`] has other cache policies and other budgets have their try at it, by
//! way of [`simulate`], which counts hits, and [`timing`], which counts seconds.
//! [`synthetic`] makes traces up.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use moewe_workshop::Trace;
//! use moewe_workshop::simulate::{Capacity, compare};
//!
//! # fn main() -> Result<(), moewe_residency::trace::TraceError> {
//! let trace = Trace::read(Path::new("run.trace"))?;
//! for (chooser, counts) in compare(&trace.header, &trace.records, Capacity::Recorded) {
//!     println!("{chooser}: {:.1} %", 100.0 * counts.hit_rate());
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod bench;
pub mod comparison;
mod error;
pub mod plan;
pub mod simulate;
pub mod synthetic;
pub mod timing;
mod trace;

pub use error::{Error, Result};
pub use trace::{Trace, hottest_experts};
