//! Attaching files to a memory, whose bytes a test reads and writes in the place of a
//! guest.

#![cfg(target_os = "linux")]

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use moewe_memory::{MapError, Region, catch_faults, n_mappings_left, page_size, shared_memory};

/// A guest's page, of which its memory has a number.
const UNIT: usize = 1 << 16;

/// What reads and writes bytes of a memory of two pages, as a guest does.
struct Guest {
    region: Region,
}

impl Guest {
    fn new() -> Self {
        let region = Region::new(1 << 32, 1 << 25).unwrap();
        region.grow(2 * UNIT).unwrap();
        Self { region }
    }

    fn at(&self, address: u64) -> *mut u8 {
        assert!(address < self.region.byte_size() as u64);
        self.region.as_ptr().wrapping_add(address as usize)
    }

    fn get(&self, address: u64) -> u8 {
        // SAFETY: the byte is accessible, and nobody holds references to any.
        unsafe { self.at(address).read_volatile() }
    }

    fn set(&self, address: u64, byte: u8) {
        // SAFETY: as above.
        unsafe { self.at(address).write_volatile(byte) }
    }
}

/// A file of `n` bytes, no two neighbouring pages alike.
fn file(n: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(0..n).map(byte).collect::<Vec<_>>()).unwrap();
    file
}

fn byte(i: usize) -> u8 {
    (i % 251) as u8 ^ (i / 4096) as u8 | 1
}

#[test]
fn attached_bytes_are_the_files() {
    let (guest, page) = (Guest::new(), page_size());
    let file = file(3 * page as usize + 100);
    guest.set(8, 7);
    let at = guest.region.attach(&file, page + 32, page, 2 * page).unwrap();
    assert_eq!(at, 2 * page + 32);
    for i in [0, 1, page - 1] {
        assert_eq!(guest.get(at + i), byte((page + 32 + i) as usize));
    }
    // The last page of the file is filled up with zeros.
    let at = guest.region.attach(&file, 3 * page, 100, 5 * page).unwrap();
    assert_eq!(guest.get(at + 99), byte(3 * page as usize + 99));
    assert_eq!(guest.get(at + 100), 0);
    assert_eq!(guest.region.windows().0, 2);
    assert_eq!(guest.get(8), 7, "memory beside the windows keeps its bytes");
}

#[test]
fn a_write_stays_private() {
    let (guest, other, page) = (Guest::new(), Guest::new(), page_size());
    let mut file = file(page as usize);
    let at = guest.region.attach(&file, 0, page, page).unwrap();
    let other_at = other.region.attach(&file, 0, page, page).unwrap();
    guest.set(at + 5, 0);
    assert_eq!(guest.get(at + 5), 0);
    assert_eq!(other.get(other_at + 5), byte(5));
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes[5], byte(5));
}

#[test]
fn detached_bytes_are_zero_and_writable() {
    let (guest, page) = (Guest::new(), page_size());
    let file = file(4 * page as usize);
    guest.region.attach(&file, 0, 4 * page, page).unwrap();
    guest.region.detach(2 * page, page).unwrap();
    assert_eq!(guest.region.windows().0, 2, "the window is split");
    assert_eq!(guest.get(2 * page), 0);
    guest.set(2 * page, 7);
    assert_eq!(guest.get(2 * page), 7);
    assert_eq!(guest.get(page), byte(0));
    assert_eq!(guest.get(3 * page), byte(2 * page as usize));

    let error = guest.region.detach(page, 4 * page).unwrap_err();
    assert!(matches!(error, MapError::NotAttached { .. }), "{error}");
    assert_eq!(guest.get(page), byte(0), "a refused detach changes nothing");
    guest.region.detach(page, page).unwrap();
    guest.region.detach(3 * page, 2 * page).unwrap();
    assert_eq!(guest.region.windows().0, 0);
}

#[test]
fn neighbouring_windows_detach_together() {
    let (guest, page) = (Guest::new(), page_size());
    let file = file(2 * page as usize);
    guest.region.attach(&file, 0, page, page).unwrap();
    guest.region.attach(&file, page, page, 2 * page).unwrap();
    guest.region.detach(page, 2 * page).unwrap();
    assert_eq!(guest.region.windows().0, 0);
    assert_eq!(guest.get(2 * page), 0);
}

#[test]
fn a_window_over_another_replaces_it() {
    let (guest, page) = (Guest::new(), page_size());
    let file = file(4 * page as usize);
    guest.region.attach(&file, 0, 3 * page, page).unwrap();
    let at = guest.region.attach(&file, 3 * page, page, 2 * page).unwrap();
    assert_eq!(guest.get(at), byte(3 * page as usize));
    assert_eq!(guest.get(page), byte(0));
    assert_eq!(guest.region.windows().0, 3);
    guest.region.detach(page, 3 * page).unwrap();
    assert_eq!(guest.region.windows().0, 0);
}

#[test]
fn ranges_outside_the_memory_are_refused() {
    let (guest, page) = (Guest::new(), page_size());
    let (file, memory) = (file(4 * page as usize), 2 << 16);
    guest.set(8, 7);
    for (offset, length, address) in [
        (0, page, 1),                       // not the start of a page
        (0, page, memory),                  // behind the memory
        (0, 2 * page, memory - page),       // across its end
        (32, page, memory - page),          // across its end by the skew
        (0, 0, page),                       // empty
        (0, page, u64::MAX - page + 1),     // wraps around
        (page - 1, u64::MAX - page, page),  // wraps around
        (page - 1, u64::MAX - page + 1, 0), // wraps around
    ] {
        let error = guest.region.attach(&file, offset, length, address).unwrap_err();
        assert!(matches!(error, MapError::Range { .. }), "{error}");
    }
    for (address, length) in [(1, page), (0, 1), (memory, page), (0, 0), (page, u64::MAX)] {
        let error = guest.region.detach(address, length).unwrap_err();
        assert!(matches!(error, MapError::Range { .. }), "{error}");
        let error = guest.region.share(&file, length, address).unwrap_err();
        assert!(matches!(error, MapError::Range { .. }), "{error}");
    }
    let error = guest.region.detach(0, page).unwrap_err();
    assert!(matches!(error, MapError::NotAttached { .. }), "{error}");
    assert_eq!(guest.get(8), 7);
}

#[test]
fn a_memory_grows_in_place_and_zeroed() {
    let (guest, page) = (Guest::new(), page_size());
    let file = file(page as usize);
    let error = guest.region.attach(&file, 0, page, 3 << 16).unwrap_err();
    assert!(matches!(error, MapError::Range { .. }), "{error}");
    let low = guest.region.attach(&file, 0, page, page).unwrap();
    guest.region.grow(30_000 * UNIT).unwrap();
    assert_eq!(guest.get(low + 1), byte(1), "a window outlives growth");
    assert_eq!(guest.get(3 << 16), 0);
    let high = guest.region.attach(&file, 0, page, 1 << 30).unwrap();
    assert_eq!(guest.get(high + 1), byte(1));
    guest.region.grow(UNIT).unwrap();
    assert_eq!(guest.region.byte_size(), 30_000 * UNIT, "it never shrinks");
    assert!(guest.region.grow((1 << 32) + 1).is_err(), "more than its capacity");
    guest.region.grow(1 << 32).unwrap();
    assert_eq!(guest.get((1 << 32) - 1), 0);
}

#[test]
fn a_shared_region_is_seen_by_all() {
    let (guest, other, page) = (Guest::new(), Guest::new(), page_size());
    let memory = shared_memory("test", 2 * page).unwrap();
    guest.region.share(&memory, 2 * page, page).unwrap();
    other.region.share(&memory, 2 * page, 4 * page).unwrap();
    guest.set(page + 3, 9);
    assert_eq!(other.get(4 * page + 3), 9);
    // A file attached over a part of it is nobody else's.
    let file = file(page as usize);
    guest.region.attach(&file, 0, page, page).unwrap();
    assert_eq!(guest.get(page + 3), byte(3));
    assert_eq!(other.get(4 * page + 3), 9);
    other.set(5 * page, 8);
    assert_eq!(guest.get(2 * page), 8);
}

#[test]
fn a_file_that_cannot_be_mapped_leaves_the_memory_whole() {
    let (guest, page) = (Guest::new(), page_size());
    guest.set(page, 3);
    let folder = File::open("/").unwrap();
    let error = guest.region.attach(&folder, 0, page, page).unwrap_err();
    assert!(matches!(error, MapError::Map(_)), "{error}");
    assert_eq!(guest.get(page), 3);
    guest.set(page, 4);
    assert_eq!(guest.get(page), 4);
    assert_eq!(guest.region.windows().0, 0);
}

#[test]
fn windows_are_limited() {
    const N: u64 = 100;
    let (guest, page) = (Guest::new(), page_size());
    guest.region.grow((4 * N * page) as usize).unwrap();
    // Each takes a mapping for what lies behind it.
    guest.region.limit_mappings(2 * N as usize);
    let file = file(page as usize);
    for i in 0..N {
        guest.region.attach(&file, 0, page, 2 * i * page).unwrap();
    }
    let refused = |address| {
        let error = guest.region.attach(&file, 0, page, address).unwrap_err();
        assert!(matches!(error, MapError::TooMany), "{error}");
        assert!(error.to_string().contains("max_map_count"), "{error}");
    };
    refused(3 * N * page);
    guest.region.attach(&file, 0, page, 0).unwrap();
    guest.region.detach(0, page).unwrap();
    assert_eq!(guest.region.windows().0 as u64, N - 1);
    guest.region.attach(&file, 0, page, 3 * N * page).unwrap_err();
    guest.region.attach(&file, 0, page, 0).unwrap();
    // Between two others one takes no more than what was there.
    guest.region.attach(&file, 0, page, page).unwrap();
    refused(3 * N * page);
}

/// What the kernel has joined counts as one.
#[test]
fn neighbours_count_once() {
    const N: u64 = 400;
    let (guest, page) = (Guest::new(), page_size());
    guest.region.grow((2 * N * page) as usize).unwrap();
    guest.region.limit_mappings(100);
    let file = file((N * page) as usize);
    for i in 0..N {
        guest.region.attach(&file, i * page, page, i * page).unwrap();
    }
    assert!(guest.region.windows().0 < 100);
    assert_eq!(guest.get(N * page - 1), byte((N * page) as usize - 1));
    // Nor does the room that is left by windows that were given back.
    for i in 0..N {
        guest.region.attach(&file, 0, page, (N + 1) * page).unwrap();
        guest.region.detach((N + 1) * page, page).unwrap();
        guest.region.attach(&file, 0, page, (N + 2 + i % (N - 3)) * page).unwrap();
        guest.region.detach((N + 2 + i % (N - 3)) * page, page).unwrap();
    }
    guest.region.detach(0, N * page).unwrap();
    assert_eq!(guest.region.windows(), (0, 0));
}

/// All regions together take no more than what the system allows the process, however much
/// each of them may take.
#[test]
fn regions_share_the_mappings_of_the_process() {
    const ALONE: &str = "MOEWE_TEST_ALONE";
    if env::var_os(ALONE).is_none() {
        let mut command = Command::new(env::current_exe().unwrap());
        let name = "regions_share_the_mappings_of_the_process";
        let output = command.args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let has_run = String::from_utf8_lossy(&output.stdout).contains("1 passed");
        assert!(output.status.success() && has_run, "{output:?}");
        return;
    }
    let (page, n_before) = (page_size(), n_mappings_left());
    let n_max = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    assert_eq!(n_before, n_max.trim().parse::<usize>().unwrap() / 2);
    let file = file(page as usize);
    let guests = [(); 3].map(|()| Guest::new());
    let mut n_attached = 0;
    for guest in &guests {
        guest.region.grow((2 * n_before * page as usize).min(1 << 32)).unwrap();
        guest.region.limit_mappings(n_before / 4 * 3);
        let attach = |i| guest.region.attach(&file, 0, page, 2 * i * page);
        n_attached += (0..n_before as u64).take_while(|&i| attach(i).is_ok()).count();
    }
    assert!(n_before / 2 - n_attached <= 2, "{n_attached} windows");
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    assert!((2 * n_attached..2 * n_attached + 1000).contains(&maps), "{maps} mappings");
    assert!(n_mappings_left() <= 2);
    drop(guests);
    assert_eq!(n_mappings_left(), n_before);
}

/// Other windows given back would not help.
#[test]
fn a_lack_of_addresses_is_not_one_of_mappings() {
    const ALONE: &str = "MOEWE_TEST_ALONE";
    const GIB: u64 = 1 << 30;
    if env::var_os(ALONE).is_none() {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 4194304 && exec \"$0\" --exact \"$1\""]);
        command.arg(env::current_exe().unwrap()).arg("a_lack_of_addresses_is_not_one_of_mappings");
        let output = command.env(ALONE, "1").output().unwrap();
        let has_run = String::from_utf8_lossy(&output.stdout).contains("1 passed");
        assert!(output.status.success() && has_run, "{output:?}");
        return;
    }
    let region = Region::new(3 * GIB as usize, 0).unwrap();
    region.grow(3 * GIB as usize).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * GIB).unwrap();
    let error = region.attach(&file, 0, 2 * GIB, 0).unwrap_err();
    assert!(matches!(error, MapError::NoMemory), "{error}");
    region.attach(&file, 0, page_size(), 0).unwrap();
}

#[test]
fn a_page_that_is_gone_becomes_zeros_and_is_noticed() {
    let (guest, page) = (Guest::new(), page_size());
    let file = file(4 * page as usize);
    guest.region.attach(&file, 0, 4 * page, page).unwrap();
    guest.set(8, 7);
    let region = &guest.region;
    catch_faults(Some(region), || {
        assert_eq!(guest.get(4 * page), byte(3 * page as usize));
        file.set_len(page + 1).unwrap();
        assert_eq!(guest.get(page + 5), byte(5));
        assert_eq!(guest.get(2 * page), byte(page as usize));
        assert!(!region.is_lost());
        assert_eq!(guest.get(4 * page), 0);
        assert!(region.is_lost());
        guest.set(3 * page + 1, 9);
        assert_eq!(guest.get(3 * page + 1), 9);
        assert_eq!(guest.get(page + 5), byte(5), "what is there stays");
        assert_eq!(guest.get(8), 7);
    });
    guest.region.detach(page, 4 * page).unwrap();
    assert_eq!(guest.get(page + 5), 0);
    assert!(!Guest::new().region.is_lost());
}

/// Faults outside of a guest's memory, in a process of their own.
#[test]
fn faults_that_are_no_guests_are_left_to_others() {
    const FAULT: &str = "MOEWE_TEST_FAULT";
    const EXIT_CODE: i32 = 77;
    extern "C" fn handler(_: i32) {
        // SAFETY: ends the process, without anything in it.
        unsafe { libc::_exit(EXIT_CODE) }
    }
    if let Some(before) = env::var_os(FAULT) {
        if before == "handler" {
            // SAFETY: the handler does nothing that a signal handler may not.
            unsafe { libc::signal(libc::SIGBUS, handler as *const () as usize) };
        }
        let (guest, page) = (Guest::new(), page_size());
        guest.region.attach(&file(page as usize), 0, page, page).unwrap();
        let (file, length) = (file(page as usize), page as usize);
        let prot = rustix::mm::ProtFlags::READ;
        let flags = rustix::mm::MapFlags::PRIVATE;
        // SAFETY: a new mapping at an address that the kernel picks.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, prot, flags, &file, 0) };
        file.set_len(0).unwrap();
        // SAFETY: the address is mapped; that there is nothing behind it ends the process.
        catch_faults(Some(&guest.region), || unsafe { at.unwrap().cast::<u8>().read_volatile() });
        unreachable!("there is nothing to read");
    }
    for (before, code, signal) in
        [("default", None, Some(libc::SIGBUS)), ("handler", Some(EXIT_CODE), None)]
    {
        let mut command = Command::new(env::current_exe().unwrap());
        let name = "faults_that_are_no_guests_are_left_to_others";
        let status = command.args(["--exact", name]).env(FAULT, before).output().unwrap().status;
        assert_eq!((status.code(), status.signal()), (code, signal), "{before}");
    }
}
