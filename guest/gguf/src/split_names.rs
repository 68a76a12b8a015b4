//! The names of the files that a model is split into.

/// The most files that a model is split into.
pub const N_SPLIT_MAX: u32 = 1 << 10;

/// The names of the files that a model is split into: `NAME-00001-of-00003.gguf` and
/// so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitNames<'a> {
    /// `NAME`.
    pub stem: &'a str,
    /// How many files there are.
    pub n_files: u32,
}

impl<'a> SplitNames<'a> {
    /// The names that go with that of any of the files, and the number of that file, from
    /// 0; `None` if it is not one of a split model.
    pub fn of(name: &'a str) -> Option<(Self, u32)> {
        let (rest, n_files) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, file) = rest.rsplit_once('-')?;
        let number = |digits: &str| -> Option<u32> {
            let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse().ok())?
        };
        let (file, n_files) = (number(file)?, number(n_files)?);
        (1..=n_files).contains(&file).then(|| (Self { stem, n_files }, file - 1))
    }

    /// The names that go with that of the first file; `None` if it is not the first of
    /// a split model.
    pub fn of_first(name: &'a str) -> Option<Self> {
        Self::of(name).and_then(|(names, file)| (file == 0).then_some(names))
    }

    /// The name of file number `file`, from 0.
    pub fn name(self, file: u32) -> String {
        let Self { stem, n_files } = self;
        format!("{stem}-{:05}-of-{n_files:05}.gguf", file + 1)
    }

    /// All of them, in order.
    pub fn iter(self) -> impl Iterator<Item = String> {
        (0..self.n_files).map(move |file| self.name(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_tells_the_others() {
        let names = SplitNames::of_first("a-of-b-00001-of-00002.gguf").unwrap();
        assert_eq!(names, SplitNames { stem: "a-of-b", n_files: 2 });
        let all: Vec<_> = names.iter().collect();
        assert_eq!(all, ["a-of-b-00001-of-00002.gguf", "a-of-b-00002-of-00002.gguf"]);
        for name in [
            "a.gguf",
            "a-00002-of-00002.gguf",
            "a-00001-of-00000.gguf",
            "a-00001-of-2.gguf",
            "a-00001-of-+0002.gguf",
            "a-00001-of-00002",
        ] {
            assert_eq!(SplitNames::of_first(name), None, "{name}");
        }
    }

    #[test]
    fn any_name_tells_the_others() {
        let names = SplitNames { stem: "a", n_files: 12 };
        for file in [0, 1, 11] {
            assert_eq!(SplitNames::of(&names.name(file)), Some((names, file)));
        }
        for name in ["a-00000-of-00012.gguf", "a-00013-of-00012.gguf", "a-+0001-of-00012.gguf"] {
            assert_eq!(SplitNames::of(name), None, "{name}");
        }
    }
}
