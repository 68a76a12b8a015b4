//! A context of 32 Ki tokens takes the memory of its KV cache, and little more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

use moewe::{Engine, ErrorKind, ModelOptions, SessionOptions};
use moewe_engine::LoadOptions;
use moewe_engine::native::Folder;
use moewe_tests::tiny::{N_VOCAB, Tiny};

const N_CTX: u32 = 32 << 10;

/// The system's allocator, which counts what each thread has.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static BYTES_PEAK: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    /// What another thread allocated may be freed here: the count wraps then.
    fn count(freed: usize, allocated: usize) {
        let bytes = BYTES.get().wrapping_sub(freed).wrapping_add(allocated);
        BYTES.set(bytes);
        BYTES_PEAK.set(BYTES_PEAK.get().max(bytes));
    }
}

// SAFETY: all requests go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(0, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old block is there until the new one is filled.
        Self::count(0, size);
        Self::count(layout.size(), 0);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        Self::count(layout.size(), 0);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(old, layout) }
    }
}

fn prompt() -> Vec<u32> {
    (0..N_CTX).map(|i| (i ^ i >> 5) % N_VOCAB).collect()
}

/// Writes a model into a folder that goes away with the test.
fn write(tiny: &Tiny) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny.write(&path);
    (folder, path)
}

/// Attention is quadratic, and test builds are slow: the model is as small as
/// it can be. A row of scores for a batch would take 64 MiB.
#[test]
fn natively_the_rest_is_less_than_a_mebibyte() {
    let tiny = Tiny { n_layer: 1, n_head: 1, head_dim: 4, n_ctx: N_CTX };
    let (_folder, path) = write(&tiny);
    let (folder, name) = Folder::of(&path).unwrap();
    let model = Rc::new(
        moewe_engine::Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap(),
    );
    let prompt = prompt();

    let before = BYTES.get();
    BYTES_PEAK.set(before);
    let mut context = moewe_engine::Context::new(model, None).unwrap();
    context.feed(&prompt).unwrap();
    let peak = (BYTES_PEAK.get() - before) as u64;
    let kv_bytes = u64::from(N_CTX) * tiny.kv_bytes_per_token();
    assert_eq!(context.kv_bytes(), kv_bytes);
    println!("{} KiB beside a KV cache of {} KiB", (peak - kv_bytes) >> 10, kv_bytes >> 10);
    assert!(peak < kv_bytes + (1 << 20), "{peak} bytes for a KV cache of {kv_bytes}");
}

/// The host refuses the guest more memory than `memory_max`, weights aside:
/// the guest's code, its stack, its heap and whatever its heap lost.
#[test]
fn in_the_sandbox_the_rest_is_less_than_8_mebibytes() {
    let tiny = Tiny { n_layer: 1, n_head: 2, head_dim: 32, n_ctx: N_CTX };
    let (_folder, path) = write(&tiny);
    let engine = Engine::new().unwrap();
    let kv_bytes = u64::from(N_CTX) * tiny.kv_bytes_per_token();
    let session = |memory_max| {
        let mut options = ModelOptions::default();
        options.memory_max = memory_max;
        let model = moewe::Model::open(&engine, &path, options).unwrap();
        model.session(SessionOptions::default()).unwrap()
    };

    let mut enough = session(kv_bytes + (8 << 20));
    enough.feed(&prompt()).unwrap();
    let usage = enough.usage().unwrap();
    assert_eq!((usage.context_tokens, usage.kv_bytes), (N_CTX, kv_bytes));

    // Too little is known before anything is computed, and changes nothing.
    let mut too_little = session(kv_bytes);
    let error = too_little.feed(&prompt()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    let usage = too_little.usage().unwrap();
    assert_eq!((usage.context_tokens, usage.kv_bytes), (0, 0));
    too_little.feed(&prompt()[..1000]).unwrap();
}
