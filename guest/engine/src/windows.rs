//! Windows on experts: those that were used last.

use std::hash::Hash;
use std::ops::Range;
use std::rc::Rc;

use lru::LruCache;

use crate::error::{ErrorKind, Result};
use crate::weights::Window;

/// What windows may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowLimits {
    /// How many there may be.
    pub n_max: usize,
    /// Bytes that they may show.
    pub bytes_max: u64,
}

impl WindowLimits {
    /// The share of so many windows on so many bytes that there can be at a time.
    fn share(self, n: usize, bytes: u64) -> f64 {
        let share = |max: f64, all: f64| if all > max { max / all } else { 1.0 };
        share(self.n_max as f64, n as f64).min(share(self.bytes_max as f64, bytes as f64))
    }
}

/// Where windows show an expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// What windows show of a file, or of a slot; nothing where there is none.
    spans: [Range<u64>; 3],
    /// For each matrix, which window has its rows, and where.
    rows: [(usize, Range<usize>); 3],
}

impl Layout {
    /// A window on the rows of each matrix, or on those of several: `joins` says which
    /// of the last two matrices share the window of the one before.
    pub fn new(rows: [Range<u64>; 3], joins: [bool; 2]) -> Self {
        let mut spans = [const { 0..0 }; 3];
        let mut first = 0;
        let windows = std::array::from_fn(|i| {
            if i == 0 || !joins[i - 1] {
                first = i;
            }
            if !rows[i].is_empty() {
                spans[first] = around(&spans[first], &rows[i]);
            }
            first
        });
        Self { rows: places(&spans, windows, &rows), spans }
    }

    /// Windows on these spans, of which each matrix has its rows in one.
    pub fn within(spans: [Range<u64>; 3], windows: [usize; 3], rows: &[Range<u64>; 3]) -> Self {
        Self { rows: places(&spans, windows, rows), spans }
    }

    fn n(&self) -> usize {
        self.spans.iter().filter(|span| !span.is_empty()).count()
    }

    fn bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.end - span.start).sum()
    }

    /// The share of experts that can be shown at a time, if so many have a layout each.
    pub fn share(limits: WindowLimits, layouts: impl Iterator<Item = (usize, Self)>) -> f64 {
        let sum = |(n, bytes): (usize, u64), (n_experts, layout): (usize, Self)| {
            let more = (n_experts as u64).saturating_mul(layout.bytes());
            (n + n_experts * layout.n(), bytes.saturating_add(more))
        };
        let (n, bytes) = layouts.fold((0, 0), sum);
        limits.share(n, bytes)
    }
}

/// For each matrix, its window, and where its rows lie in that.
fn places(
    spans: &[Range<u64>; 3],
    windows: [usize; 3],
    rows: &[Range<u64>; 3],
) -> [(usize, Range<usize>); 3] {
    std::array::from_fn(|i| {
        let (window, rows) = (windows[i], &rows[i]);
        let at = |n: u64| (n - spans[window].start) as usize;
        (window, if rows.is_empty() { 0..0 } else { at(rows.start)..at(rows.end) })
    })
}

/// The least range with both.
pub(crate) fn around(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}

/// The pages with a range.
pub(crate) fn pages(range: &Range<u64>, page_size: u64) -> Range<u64> {
    match range.is_empty() {
        true => 0..0,
        false => range.start / page_size * page_size..range.end.next_multiple_of(page_size),
    }
}

/// Windows on experts that were used last, within limits.
pub(crate) struct Windows<K: Hash + Eq> {
    limits: WindowLimits,
    n: usize,
    bytes: u64,
    experts: LruCache<K, Rc<Shown>>,
}

/// The windows on an expert.
pub(crate) struct Shown {
    layout: Layout,
    windows: [Option<Box<dyn Window>>; 3],
}

impl Shown {
    /// The rows of a matrix, as the layout says.
    pub fn rows(&self, layout: &Layout, matrix: usize) -> &[u8] {
        let (window, rows) = &layout.rows[matrix];
        let bytes = self.windows[*window].as_ref().map_or(&[][..], |window| window.bytes());
        &bytes[rows.clone()]
    }
}

impl<K: Hash + Eq> Windows<K> {
    pub fn new(limits: WindowLimits) -> Self {
        Self { limits, n: 0, bytes: 0, experts: LruCache::unbounded() }
    }

    /// The windows on what `key` names, which show the same every time. `open` opens one of
    /// them on what it shall show.
    ///
    /// Others are given back before there are too many, or if the host says that there
    /// are or has no memory for more.
    pub fn get(
        &mut self,
        key: K,
        layout: &Layout,
        open: impl Fn(usize, &Range<u64>) -> Result<Box<dyn Window>>,
    ) -> Result<Rc<Shown>> {
        if let Some(shown) = self.experts.get(&key) {
            return Ok(shown.clone());
        }
        let (n, bytes) = (layout.n(), layout.bytes());
        while self.n + n > self.limits.n_max || self.bytes + bytes > self.limits.bytes_max {
            if !self.close_oldest() {
                break;
            }
        }
        let windows = loop {
            match open_all(layout, &open) {
                Ok(windows) => break windows,
                Err(e)
                    if matches!(e.kind(), ErrorKind::TooManyWindows | ErrorKind::OutOfMemory)
                        && self.close_oldest() => {}
                Err(e) => return Err(e),
            }
        };
        let shown = Rc::new(Shown { layout: layout.clone(), windows });
        self.n += n;
        self.bytes += bytes;
        self.experts.put(key, shown.clone());
        Ok(shown)
    }

    /// False if there is none.
    fn close_oldest(&mut self) -> bool {
        let oldest = self.experts.pop_lru();
        if let Some((_, oldest)) = &oldest {
            self.closed(oldest);
        }
        oldest.is_some()
    }

    fn closed(&mut self, shown: &Shown) {
        self.n -= shown.layout.n();
        self.bytes -= shown.layout.bytes();
    }
}

fn open_all(
    layout: &Layout,
    open: impl Fn(usize, &Range<u64>) -> Result<Box<dyn Window>>,
) -> Result<[Option<Box<dyn Window>>; 3]> {
    let [a, b, c] = std::array::from_fn(|i| {
        let span = &layout.spans[i];
        (!span.is_empty()).then(|| open(i, span)).transpose()
    });
    Ok([a?, b?, c?])
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;

    use super::*;
    use crate::Error;

    #[test]
    fn matrices_that_touch_share_a_window() {
        let rows = [100..150, 200..240, 300..390];
        let apart = Layout::new(rows.clone(), [false, false]);
        assert_eq!(apart.spans, rows);
        assert_eq!(apart.rows, [(0, 0..50), (1, 0..40), (2, 0..90)]);
        let joined = Layout::new(rows.clone(), [true, true]);
        assert_eq!(joined.spans, [100..390, 0..0, 0..0]);
        assert_eq!(joined.rows, [(0, 0..50), (0, 100..140), (0, 200..290)]);
        let two = Layout::new(rows.clone(), [false, true]);
        assert_eq!(two.spans, [100..150, 200..390, 0..0]);
        assert_eq!(two.rows, [(0, 0..50), (1, 0..40), (1, 100..190)]);
        // Without rows of the first one.
        let less = Layout::new([100..100, 200..240, 300..390], [true, true]);
        assert_eq!(less.spans, [200..390, 0..0, 0..0]);
        assert_eq!(less.rows, [(0, 0..0), (0, 0..40), (0, 100..190)]);
        let whole = Layout::within([0..512, 0..0, 0..0], [0; 3], &rows);
        assert_eq!((whole.n(), whole.bytes()), (1, 512));
        assert_eq!(whole.rows[2], (0, 300..390));
    }

    #[test]
    fn as_many_experts_are_shown_as_there_is_room_for() {
        // A member with half of the rows of matrices that touch.
        let rows = [0..50, 100..150, 200..250];
        for (joins, n_max, bytes_max, share) in [
            (true, usize::MAX, u64::MAX, 1.0),
            (false, 24, 1200, 1.0),
            (false, 12, 1200, 0.5),
            (false, 24, 300, 0.25),
            (true, 12, 1000, 0.5),
            (true, 4, 2000, 0.5),
        ] {
            let limits = WindowLimits { n_max, bytes_max };
            let layout = Layout::new(rows.clone(), [joins; 2]);
            let layouts = [(6, layout.clone()), (2, layout)];
            let got = Layout::share(limits, layouts.into_iter());
            assert_eq!(got, share, "{joins}, {n_max}, {bytes_max}");
        }
        let limits = WindowLimits { n_max: 0, bytes_max: 0 };
        assert_eq!(Layout::share(limits, std::iter::empty()), 1.0);
    }

    /// A window that others are refused while it is open.
    struct Open {
        bytes: Vec<u8>,
        start: u64,
        open: Rc<RefCell<BTreeSet<u64>>>,
    }

    impl Window for Open {
        fn bytes(&self) -> &[u8] {
            &self.bytes
        }
    }

    impl Drop for Open {
        fn drop(&mut self) {
            assert!(self.open.borrow_mut().remove(&self.start));
        }
    }

    #[test]
    fn the_oldest_windows_go_when_there_are_too_many() {
        let (open, n_opened) = (Rc::new(RefCell::new(BTreeSet::new())), Cell::new(0));
        let host_max = Cell::new(usize::MAX);
        let refusal = Cell::new(ErrorKind::TooManyWindows);
        let layout = |expert: u64| {
            let at = 100 * expert;
            Layout::new([at..at + 10, at + 20..at + 30, at + 40..at + 50], [false, true])
        };
        let get = |windows: &mut Windows<u64>, expert: u64| {
            let open_one = |_: usize, span: &Range<u64>| {
                if open.borrow().len() >= host_max.get() {
                    return Err(Error::new(refusal.get(), "no more"));
                }
                n_opened.set(n_opened.get() + 1);
                open.borrow_mut().insert(span.start);
                let bytes = vec![0; (span.end - span.start) as usize];
                let window = Open { bytes, start: span.start, open: open.clone() };
                Ok(Box::new(window) as Box<dyn Window>)
            };
            windows.get(expert, &layout(expert), open_one).map(drop)
        };
        // Two windows on 10 and on 30 bytes for each expert.
        for (n_max, bytes_max, n) in [(usize::MAX, 120, 3), (7, u64::MAX, 3), (4, 90, 2)] {
            let mut windows = Windows::new(WindowLimits { n_max, bytes_max });
            n_opened.set(0);
            for expert in [0, 1, 0, 2, 3, 0] {
                get(&mut windows, expert).unwrap();
            }
            assert_eq!(open.borrow().len(), 2 * n);
            assert_eq!(n_opened.get(), 2 * if n == 3 { 4 } else { 5 });
        }
        assert!(open.borrow().is_empty());
        // The host allows less than it said.
        for kind in [ErrorKind::TooManyWindows, ErrorKind::OutOfMemory] {
            let mut windows = Windows::new(WindowLimits { n_max: usize::MAX, bytes_max: u64::MAX });
            refusal.set(kind);
            host_max.set(5);
            for expert in 0..5 {
                get(&mut windows, expert).unwrap();
            }
            assert_eq!(open.borrow().iter().copied().collect::<Vec<_>>(), [300, 320, 400, 420]);
            host_max.set(1);
            let error = get(&mut windows, 9).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(open.borrow().is_empty());
        }
    }
}
