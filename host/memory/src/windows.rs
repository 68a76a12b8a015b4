//! What is mapped over a region.

use std::collections::BTreeMap;

/// What was mapped over a region: disjoint ranges, not merged, by their start.
///
/// Ranges that were given back count as well: the kernel does not always join
/// their pages with those around them again, and so keeps a mapping for each.
#[derive(Default)]
pub(crate) struct Windows {
    ranges: BTreeMap<usize, Window>,
    n_attached: usize,
    bytes_attached: usize,
}

#[derive(Clone, Copy)]
struct Window {
    end: usize,
    attached: bool,
}

impl Windows {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// How many of them are attached, and the bytes of these.
    pub fn attached(&self) -> (usize, usize) {
        (self.n_attached, self.bytes_attached)
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

    /// How many ranges there would be if this one was replaced.
    pub fn len_replaced(&self, start: usize, end: usize) -> usize {
        let mut n = self.ranges.len() + 1;
        for (s, w) in self.touched(start, end) {
            n += usize::from(s < start) + usize::from(w.end > end);
            n -= 1;
        }
        n
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
    }

    fn insert(&mut self, start: usize, window: Window) {
        self.ranges.insert(start, window);
        if window.attached {
            self.n_attached += 1;
            self.bytes_attached += window.end - start;
        }
    }

    fn remove(&mut self, start: usize) {
        if let Some(Window { end, attached: true }) = self.ranges.remove(&start) {
            self.n_attached -= 1;
            self.bytes_attached -= end - start;
        }
    }
}
