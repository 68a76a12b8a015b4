//! Pages in whose place the host puts something.
//!
//! They are no part of the heap, whose allocator writes into what it hands out and next
//! to it. A page that was written to is a page fault and a page of memory, and has to be
//! taken from all processors' tables when something else is mapped there.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use range_alloc::RangeAllocator;

/// The unit in which WebAssembly's memories grow.
const WASM_PAGE_BYTES: usize = 1 << 16;
/// No memory is mapped in smaller pages.
const PAGE_BYTES_MIN: usize = 512;
/// The most of these that a memory has: of 4 GiB, or of 256 TiB where addresses have 64 bits.
const N_WASM_PAGES_MAX: usize = if cfg!(target_pointer_width = "32") { 1 << 16 } else { 1 << 32 };

/// Makes the memory larger by `n` of WebAssembly's pages, and answers the number of the
/// first.
fn grow(n: usize) -> Option<usize> {
    #[cfg(target_arch = "wasm32")]
    return Some(std::arch::wasm32::memory_grow::<0>(n)).filter(|&first| first != usize::MAX);
    #[cfg(target_arch = "wasm64")]
    return Some(std::arch::wasm64::memory_grow::<0>(n)).filter(|&first| first != usize::MAX);
    // Elsewhere this crate is checked, but has no host.
    #[cfg(not(target_family = "wasm"))]
    panic!("no memory to grow by {n}");
}

/// Pages of this guest's memory, apart from its heap.
#[derive(Clone)]
pub(crate) struct PagePool {
    page_size: usize,
    /// Which are free, by their numbers.
    free: Rc<RefCell<RangeAllocator<usize>>>,
}

impl PagePool {
    /// An empty pool of pages of so many bytes; `None` if no pages are as small, or if
    /// WebAssembly's are smaller.
    pub fn new(page_size: usize) -> Option<Self> {
        let sizes = PAGE_BYTES_MIN..=WASM_PAGE_BYTES;
        if !page_size.is_power_of_two() || !sizes.contains(&page_size) {
            return None;
        }
        // Whatever a memory may grow to is in use before it is there.
        let all = 0..N_WASM_PAGES_MAX * (WASM_PAGE_BYTES / page_size);
        let mut free = RangeAllocator::new(all.clone());
        free.allocate_range(all.len()).expect("all of it");
        Some(Self { page_size, free: Rc::new(RefCell::new(free)) })
    }

    /// The size of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// As many pages as `bytes` bytes take, or `None` if there is no memory.
    pub fn take(&self, bytes: usize) -> Option<Pages> {
        let n = bytes.div_ceil(self.page_size).max(1);
        let mut free = self.free.borrow_mut();
        let numbers = match free.allocate_range(n) {
            Ok(numbers) => numbers,
            Err(_) => {
                let per_wasm_page = WASM_PAGE_BYTES / self.page_size;
                let n_grow = n.div_ceil(per_wasm_page);
                let first = grow(n_grow)?;
                // What is left over may join what comes next.
                free.free_range(first * per_wasm_page..(first + n_grow) * per_wasm_page);
                free.allocate_range(n).ok()?
            }
        };
        Some(Pages { pool: self.clone(), numbers })
    }
}

/// Some of them, one after another: zeros until the host puts something there. They go
/// back to the pool when they are dropped, and must be plain memory then.
pub(crate) struct Pages {
    pool: PagePool,
    numbers: Range<usize>,
}

impl Pages {
    /// Where they begin.
    pub fn start(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.numbers.start * self.pool.page_size)
    }

    /// Their size in bytes.
    pub fn len(&self) -> usize {
        self.numbers.len() * self.pool.page_size
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().free_range(self.numbers.clone());
    }
}
