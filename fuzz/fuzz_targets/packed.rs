//! The target `packed` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moewe_fuzz::packed::fuzz(data));
