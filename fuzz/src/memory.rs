//! What an input takes in memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static BYTES_PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread has. A program whose global
/// allocator is another one measures nothing.
pub struct Counting;

impl Counting {
    /// What another thread allocated may be freed here: the count wraps then.
    fn count(freed: usize, allocated: usize) {
        let bytes = BYTES.get().wrapping_sub(freed).wrapping_add(allocated);
        BYTES.set(bytes);
        if bytes <= usize::MAX / 2 {
            BYTES_PEAK.set(BYTES_PEAK.get().max(bytes));
        }
    }
}

// SAFETY: all requests go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(0, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(0, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
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

/// The result of `f`, and the most bytes that it had at once beyond those that were
/// there before.
pub fn measured<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let (before, outer_peak) = (BYTES.get(), BYTES_PEAK.get());
    BYTES_PEAK.set(before);
    let result = f();
    let peak = BYTES_PEAK.get();
    BYTES_PEAK.set(outer_peak.max(peak));
    (result, peak.saturating_sub(before))
}

/// Runs `f`, which may take `bytes_max`.
///
/// # Panics
///
/// If it takes more.
pub(crate) fn bounded<T>(bytes_max: usize, f: impl FnOnce() -> T) -> T {
    let (result, bytes) = measured(f);
    assert!(
        bytes <= bytes_max,
        "it takes more memory than its input excuses: {bytes} bytes of {bytes_max}"
    );
    result
}
