//! What a packed copy says about the file that it was made from.
//!
//! A stamp that is read is written and read again as the same. A copy is not taken for
//! that of a file that has changed.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_packed::{
    CHECKSUM_KEY, LENGTH_KEY, PackedCopy, SOURCE_KEY, SourceFile, Stamp, VERSION_KEY, copy_path,
    file_to_open, seal,
};
use tempfile::TempDir;

use crate::memory;
use crate::target::{Target, reached};

/// See the module.
pub const TARGET: Target = Target {
    name: "packed",
    fuzz,
    seeds,
    words: &["GGUF", VERSION_KEY, LENGTH_KEY, CHECKSUM_KEY, SOURCE_KEY, "\u{9}\0\0\0\u{a}\0\0\0"],
    len_max: 1 << 13,
};

/// Bytes of the source that are stamped as its header.
const HEADER_BYTES: usize = 40;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for n in [1, 2, 5] {
        let file = SourceFile {
            size: 1 << 40,
            header_bytes: 99,
            samples: n,
            checksum: u64::MAX / n,
            inode: 7,
            modified: 1 << 60,
        };
        let stamp = Stamp { files: vec![file; n as usize] };
        seeds.push([&[0], &stamped(&stamp)[..]].concat());
        seeds.push(
            [&[1], &(0..=99u8).map(|i| i.wrapping_mul(n as u8 * 7)).collect::<Vec<_>>()[..]]
                .concat(),
        );
    }
    seeds
}

/// The beginning of a packed file.
fn stamped(stamp: &Stamp) -> Vec<u8> {
    let mut header = stamp.header().bytes();
    seal(&mut header);
    header
}

thread_local! {
    /// A sound stamp: what is like it for longer is nearer to one.
    static SEED: Vec<u8> = seeds()[0][1..].to_vec();
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// A folder that is used again for each input.
fn folder() -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        // In memory, where that is a place for files: others write to the disk.
        let folder = folder.get_or_insert_with(|| {
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
        });
        folder.path().to_owned()
    })
}

/// See the module.
///
/// # Panics
///
/// If a promise is broken.
pub fn fuzz(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let folder = folder();
    // A source takes a hundred times as long.
    if first % 64 == 1 {
        let _ = any_source(&folder, &mut Unstructured::new(rest));
    } else {
        any_file(&folder.join("any.gguf"), rest);
    }
}

fn read(path: &Path, len: usize) -> Option<Stamp> {
    let stamp = memory::bounded((16 << 10) + 8 * len, || Stamp::read(path));
    stamp.expect("a file that is there can be read")
}

fn any_file(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a file can be written");
    let Some(stamp) = read(path, bytes.len()) else {
        let like = SEED.with(|seed| seed.iter().zip(bytes).take_while(|(a, b)| a == b).count());
        return reached(&"x".repeat(like / 4));
    };
    assert!(!stamp.files.is_empty());
    let written = stamped(&stamp);
    fs::write(path, &written).expect("a file can be written");
    assert_eq!(read(path, written.len()), Some(stamp.clone()), "another stamp");
    // Each part of it is needed.
    for len in [0, 8, written.len() / 2, written.len() - 1] {
        fs::write(path, &written[..len]).expect("a file can be written");
        assert_eq!(read(path, len), None, "{len} of {} bytes suffice", written.len());
    }
    reached(["one file", "files"][usize::from(stamp.files.len() > 1)]);
}

/// A source, its copy, and a change to the source.
fn any_source(folder: &Path, u: &mut Unstructured<'_>) -> Result<()> {
    let source = folder.join("source.gguf");
    let copy = copy_path(&source);
    let len = *u.choose(&[4096, 4097, 9000])?;
    let step = u8::arbitrary(u)? | 1;
    let mut bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(step)).collect();
    fs::write(&source, &bytes).expect("a file can be written");
    let mut file = File::open(&source).expect("it was just written");
    let stamp =
        SourceFile::of(&mut file, HEADER_BYTES as u64, &mut |_| Ok(())).expect("it can be read");
    fs::write(&copy, stamped(&Stamp { files: vec![stamp] })).expect("a file can be written");
    assert_eq!(PackedCopy::of(&source), PackedCopy::Current(copy.clone()));
    assert_eq!(file_to_open(&source), copy);

    let at = u.int_in_range(0..=len - 1)?;
    let change = u8::arbitrary(u)?;
    match u.int_in_range(0..=3)? {
        0 => bytes[at] ^= change,
        1 => bytes.truncate(at),
        2 => bytes.push(change),
        _ => {
            // Something else altogether, maybe with the bytes of the copy.
            bytes = u.bytes(u.len())?.to_vec();
        }
    }
    let is_same = bytes.len() == len && (0..len).all(|i| bytes[i] == (i as u8).wrapping_mul(step));
    fs::write(&source, &bytes).expect("a file can be written");
    // The same bytes, written once more, need not be known again.
    let found = PackedCopy::of(&source);
    assert!(is_same || matches!(found, PackedCopy::Stale(path, _) if path == copy));
    reached(["stale", "current"][usize::from(is_same)]);
    Ok(())
}
