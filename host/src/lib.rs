//! Run mixture-of-experts language models in a WebAssembly sandbox.
