//! A member of a team that has no memory left fails for all, and nothing has changed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::thread;

use moewe_engine::native::{Folder, Member};
use moewe_engine::{Context, ErrorKind, LoadOptions, Model};
use moewe_fixtures::model;

thread_local! {
    /// The most bytes that this thread can allocate at once.
    static BYTES_MAX: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The system's memory, as far as a thread can have it.
struct Limited;

// SAFETY: all memory is the system's; none is no memory, as it may be.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match layout.size() > BYTES_MAX.get() {
            true => std::ptr::null_mut(),
            // SAFETY: the caller vouches for the layout.
            false => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: `p` is the system's.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static LIMITED: Limited = Limited;

/// Feeds a context in steps of so many tokens, then in one that a member has no
/// memory for, as it allocates more than `bytes_max` at once.
fn check(path: &Path, member: Member, steps: &[usize], last: usize, bytes_max: usize) {
    let (folder, name) = Folder::of(path).unwrap();
    let options = LoadOptions::default();
    let model = Model::load_in_team(&folder, &name, u64::MAX, &options, Box::new(member));
    let model = Rc::new(model.unwrap());
    let text: Vec<u32> = (0..200).map(|i| i * 37 % 500).collect();
    let fed = || {
        let mut context = Context::new(model.clone(), None).unwrap();
        for &n in steps {
            let from = context.tokens().len();
            context.feed(&text[from..from + n]).unwrap();
        }
        context
    };
    let (mut context, mut other) = (fed(), fed());
    let from = context.tokens().len();
    let next = &text[from..from + last];
    let (kv_bytes, logits) = (context.kv_bytes(), context.logits().unwrap().to_vec());
    for _ in 0..2 {
        BYTES_MAX.set(bytes_max);
        let failed = context.feed(next);
        BYTES_MAX.set(usize::MAX);
        let error = failed.expect_err("no memory");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert_eq!((context.tokens(), context.kv_bytes()), (&text[..from], kv_bytes));
        assert!(context.logits().unwrap() == logits);
    }
    other.feed(next).unwrap();
    context.feed(next).unwrap();
    assert!(context.logits().unwrap() == other.logits().unwrap());
}

/// In teams of several sizes, each member in turn.
fn check_teams(steps: &[usize], last: usize, bytes_max: usize) {
    let path = model("qwen2moe-q8_0");
    for size in [1, 2, 3] {
        for unlucky in 0..size {
            thread::scope(|scope| {
                for (rank, member) in Member::team(size).into_iter().enumerate() {
                    let bytes_max = if rank == unlucky { bytes_max } else { usize::MAX };
                    let path = &path;
                    scope.spawn(move || check(path, member, steps, last, bytes_max));
                }
            });
        }
    }
}

/// The second chunk of the cache takes 8 KiB or more of each member and layer.
#[test]
fn the_cache_cannot_grow() {
    check_teams(&[16, 16, 16, 12], 10, 6 << 10);
}

/// The hidden states of 64 tokens take 64 KiB.
#[test]
fn a_batch_is_too_long() {
    check_teams(&[3], 40, 48 << 10);
}
