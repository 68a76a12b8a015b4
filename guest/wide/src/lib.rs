//! The moewe engine as a WebAssembly module with 64-bit addresses.
//!
//! WIT's lists and strings cannot lie in a memory with such addresses, so this module is
//! one of two in a component. Its face is `guest/component`, which has 32-bit addresses
//! and speaks WIT. Between both go numbers and messages (`guest/protocol`), from memory to
//! memory.
//!
//! ```text
//!  WIT, exports        messages          messages, numbers        WIT, imports
//!  ------------> face ----------> wide -------------------> face ------------->
//! ```

mod exports;
mod host;
