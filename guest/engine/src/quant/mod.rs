//! The tensor formats that the engine computes with.
//!
//! Weights stay as the file has them. Activations are quantised to 8 bits
//! once for each matrix ([`Activations`]), and a kernel for each format
//! multiplies the two. Layouts: ggml's `block_q4_0` to `block_q6_K`.
//!
//! Each module knows only those above it:
//! - `scalar`, `f16`, `shape`: numbers out of bytes, and how much the kernels take at
//!   a time;
//! - `activations`;
//! - `rows`, which is how rows may lie, and `raw` and `packed`, which is how they do;
//! - `blocks`, what a format is;
//! - `narrow`, what formats of few bits share, `wide`, those of 8, and `looked_up`, those
//!   whose numbers stand in codebooks;
//! - `formats`: each of them, and the list of them;
//! - `pack`, which interleaves rows;
//! - `panels`, `gemm`, `gemv`: the kernels of all formats;
//! - `matrix`.

mod activations;
mod blocks;
pub(crate) mod f16;
mod formats;
mod gemm;
mod gemv;
mod looked_up;
mod matrix;
mod narrow;
mod pack;
mod packed;
mod panels;
mod raw;
mod rows;
mod scalar;
mod shape;
mod wide;

pub(crate) use activations::Activations;
pub(crate) use formats::{Format, dequantize_row};
pub(crate) use matrix::{Matrix, put_numbers};
pub use pack::pack;
