//! Pages of files.

use std::ops::Range;

use moewe_disk::{ALIGNMENT, Storage};

/// How many bytes of these pages the disk can read of a file: pages may be larger than
/// the disk's unit, and so end behind the last of those.
pub(super) fn n_readable(pages: &Range<u64>, file: &dyn Storage, page_size: u64) -> u64 {
    let promised = file.promised();
    let end = match pages.end <= promised.next_multiple_of(page_size) {
        true => pages.end.min(promised.next_multiple_of(ALIGNMENT)),
        // The file is shorter than it was; the disk says so.
        false => pages.end,
    };
    end.saturating_sub(pages.start)
}
