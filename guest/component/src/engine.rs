//! The engine, in this module.

use moewe_protocol::Inference;
use moewe_service::{Addresses, Platform, Service};

use crate::host::Imports;

/// The most bytes of weights that are addressable at a time: of the 4 GiB that a 32-bit
/// guest has, the rest is for the KV cache and the heap.
const WINDOW_BYTES_MAX: u64 = 3 << 30;

thread_local! {
    static SERVICE: Service = const {
        let addresses = Addresses::Windows { bytes_max: WINDOW_BYTES_MAX };
        Service::new(Platform { host: &Imports, team: &Imports, addresses })
    };
}

/// Calls the engine.
pub(crate) fn with<T>(f: impl FnOnce(&dyn Inference) -> T) -> T {
    SERVICE.with(|service| f(service))
}
