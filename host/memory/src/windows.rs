//! What is mapped over a region.

use std::collections::BTreeMap;

/// What was mapped over a region: disjoint ranges by their start.
///
/// Ranges that were given back count as well, and neighbours are not merged: the kernel
/// does not always join their pages, and so keeps a mapping for each. [`merge`](Self::merge)
/// takes over where it did.
#[derive(Default)]
pub(crate) struct Windows {
    ranges: BTreeMap<usize, Window>,
    /// Ranges behind which no other one begins.
    n_holes: usize,
    n_attached: usize,
    bytes_attached: usize,
    /// Ranges that came since the last merge.
    n_new: usize,
}

#[derive(Clone, Copy)]
struct Window {
    end: usize,
    attached: bool,
}

impl Windows {
    /// The most mappings that the kernel has for all these ranges, and what lies between
    /// them.
    pub fn n_mappings(&self) -> usize {
        self.ranges.len() + self.n_holes
    }

    /// How many of them are attached, and the bytes of these.
    pub fn attached(&self) -> (usize, usize) {
        (self.n_attached, self.bytes_attached)
    }

    /// How many ranges came since the last merge.
    pub fn n_new(&self) -> usize {
        self.n_new
    }

    /// What has bytes in common with the range.
    fn touched(&self, start: usize, end: usize) -> impl Iterator<Item = (usize, Window)> {
        let first = self.ranges.range(..start).next_back().map_or(start, |(&s, _)| s);
        self.ranges.range(first..end).map(|(&s, &w)| (s, w)).filter(move |(_, w)| w.end > start)
    }

    /// Whether all of the range is attached.
    pub fn covers(&self, start: usize, end: usize) -> bool {
        let mut at = start;
        for (s, w) in self.touched(start, end).filter(|(_, w)| w.attached) {
            if s > at {
                return false;
            }
            at = w.end;
        }
        at >= end
    }

    /// The same if this range was replaced.
    pub fn n_mappings_replaced(&self, start: usize, end: usize) -> usize {
        let (mut n, mut last) = (self.n_mappings() + 1, None);
        for (s, w) in self.touched(start, end) {
            n -= 1 + usize::from(self.has_hole(&w));
            n += usize::from(s < start);
            last = Some(w);
        }
        match last.filter(|last| last.end > end) {
            Some(last) => n += 1 + usize::from(self.has_hole(&last)),
            None => n += usize::from(!self.ranges.contains_key(&end)),
        }
        n - usize::from(self.has_end(start) && !self.ranges.contains_key(&start))
    }

    /// Notes what was mapped over a range.
    pub fn replace(&mut self, start: usize, end: usize, attached: bool) {
        let touched: Vec<_> = self.touched(start, end).collect();
        for (s, w) in touched {
            self.remove(s);
            if s < start {
                self.insert(s, Window { end: start, ..w });
            }
            if w.end > end {
                self.insert(end, w);
            }
        }
        self.insert(start, Window { end, attached });
        self.n_new += 1;
    }

    /// Joins neighbours between which the kernel has no boundary.
    pub fn merge(&mut self, is_boundary: impl Fn(usize) -> bool) {
        let mut ranges = std::mem::take(self).ranges.into_iter();
        let Some((mut start, mut window)) = ranges.next() else { return };
        for (next, other) in ranges {
            if next == window.end && other.attached == window.attached && !is_boundary(next) {
                window.end = other.end;
            } else {
                self.insert(start, window);
                (start, window) = (next, other);
            }
        }
        self.insert(start, window);
    }

    /// Whether no other range begins where this one ends.
    fn has_hole(&self, window: &Window) -> bool {
        !self.ranges.contains_key(&window.end)
    }

    /// Whether a range ends here.
    fn has_end(&self, at: usize) -> bool {
        self.ranges.range(..at).next_back().is_some_and(|(_, window)| window.end == at)
    }

    fn insert(&mut self, start: usize, window: Window) {
        self.n_holes += usize::from(self.has_hole(&window));
        self.n_holes -= usize::from(self.has_end(start));
        self.ranges.insert(start, window);
        if window.attached {
            self.n_attached += 1;
            self.bytes_attached += window.end - start;
        }
    }

    fn remove(&mut self, start: usize) {
        let Some(window) = self.ranges.remove(&start) else { return };
        self.n_holes -= usize::from(self.has_hole(&window));
        self.n_holes += usize::from(self.has_end(start));
        if window.attached {
            self.n_attached -= 1;
            self.bytes_attached -= window.end - start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted from the ranges themselves.
    fn n_mappings(windows: &Windows) -> usize {
        let is_hole = |window: &&Window| !windows.ranges.contains_key(&window.end);
        windows.ranges.len() + windows.ranges.values().filter(is_hole).count()
    }

    #[test]
    fn mappings_are_counted_with_the_holes_between_them() {
        let mut windows = Windows::default();
        for (start, end, attached, n) in [
            (10, 20, true, 2),
            (20, 30, true, 3),
            (40, 50, true, 5),
            (30, 40, true, 5),
            (24, 26, false, 7),
            (22, 28, false, 7),
            (0, 60, false, 2),
            (70, 80, true, 4),
            (75, 85, true, 5),
        ] {
            assert_eq!(windows.n_mappings_replaced(start, end), n, "{start}..{end}");
            windows.replace(start, end, attached);
            assert_eq!(windows.n_mappings(), n, "{start}..{end}");
            assert_eq!(n_mappings(&windows), n, "{start}..{end}");
        }
        assert_eq!(windows.attached(), (2, 15));
    }

    #[test]
    fn what_the_kernel_has_joined_is_one() {
        let mut windows = Windows::default();
        for i in 0..10 {
            windows.replace(10 * i, 10 * i + 10, i % 5 != 4);
        }
        windows.replace(200, 210, true);
        assert_eq!((windows.n_mappings(), windows.n_new()), (13, 11));
        // Not in the middle of the first ones.
        windows.merge(|at| at == 20);
        assert_eq!((windows.n_mappings(), n_mappings(&windows), windows.n_new()), (8, 8, 0));
        assert_eq!(windows.attached(), (4, 90));
        assert!(windows.covers(5, 40) && !windows.covers(5, 41) && windows.covers(50, 90));
        Windows::default().merge(|_| false);
    }
}
