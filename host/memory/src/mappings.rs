//! The mappings that a system allows a process, and what of them windows take.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What Linux allows unless an administrator says otherwise.
const DEFAULT: usize = 65_530;

/// A process within so many of what it may have is at its limit: to replace a part of a
/// mapping takes two more, and other threads map, too.
const NEAR: usize = 64;

/// Mappings that regions take for their windows.
static N_USED: AtomicUsize = AtomicUsize::new(0);

/// What the system allows a process (`vm.max_map_count`).
fn system_max() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse().unwrap_or(DEFAULT)
    })
}

/// The most mappings that all windows of the process may take: half of what the system
/// allows. The rest is for all else that a process maps.
pub(crate) fn n_mappings_max() -> usize {
    system_max() / 2
}

/// Whether the process has about as many mappings as the system allows, so that this is why
/// it gets no more.
pub(crate) fn is_at_limit() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps");
    // Whoever cannot even read has no memory for that.
    maps.is_ok_and(|maps| maps.lines().count() + NEAR >= system_max())
}

/// How many mappings are left for windows.
pub fn n_mappings_left() -> usize {
    n_mappings_max().saturating_sub(N_USED.load(Ordering::Relaxed))
}

/// Notes that so many more, or fewer, are in use than before.
pub(crate) fn note_used(before: usize, after: usize) {
    N_USED.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
}

/// Where mappings begin within a range of addresses, as the kernel has them; `None` if it
/// does not tell.
pub(crate) fn boundaries(range: Range<usize>) -> Option<BTreeSet<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let start = |line: &str| usize::from_str_radix(line.split_once('-')?.0, 16).ok();
    Some(maps.lines().filter_map(start).filter(|start| range.contains(start)).collect())
}
