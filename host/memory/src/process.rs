//! What the process as a whole has of memory.

use std::ops::Range;

use rustix::mm::Advice;

/// Has the bytes of a range mapped now, as far as they are in the page cache: they count
/// as the process's own then. A range that is not mapped stays so.
pub fn make_present(range: Range<*const u8>) {
    let length = range.end.addr().saturating_sub(range.start.addr());
    // SAFETY: this advice changes no byte, and is refused for what is not mapped. A
    // kernel that does not know it does no harm.
    let _ = unsafe {
        rustix::mm::madvise(range.start.cast_mut().cast(), length, Advice::LinuxPopulateRead)
    };
}

/// Has this process take large blocks of memory from the system one by one, and give
/// each back when it is free. Otherwise the allocator learns from their sizes to keep
/// up to twice as much as the largest, for good where a thread has a heap of its own.
pub fn map_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: this setting concerns blocks that are allocated from now on. It is the one
    // that the allocator begins with.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives back to the system what a large piece of work has left behind: what was freed,
/// and the code that did it, that of the program or library with this function.
pub fn give_back(worker: *const ()) {
    #[cfg(target_env = "gnu")]
    // SAFETY: it looks at free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    // Of a file: what else is code was written by this process, and exists nowhere else.
    let of_files = maps.lines().filter(|line| line.contains(" r-xp ") && line.contains('/'));
    let code = of_files.filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(address(start)?..address(end)?)
    });
    if let Some(code) = { code }.find(|code| code.contains(&worker.addr())) {
        // SAFETY: the range is a private mapping of a program's or a library's code,
        // which nobody writes to; it is read from the file again when it runs next.
        let _ = unsafe {
            let start = std::ptr::with_exposed_provenance_mut(code.start);
            rustix::mm::madvise(start, code.len(), Advice::LinuxDontNeed)
        };
    }
}
