//! Wasmtime's linear memories, in regions that files can be mapped into.

use std::cell::RefCell;
use std::sync::Arc;

use moewe_memory::Region;
use wasmtime::{Config, LinearMemory, MemoryCreator, MemoryType};

/// Address space that a memory with 32-bit addresses gets: all that they reach.
pub(super) const MEMORY_BYTES_MAX: u64 = 1 << 32;

/// Has Wasmtime create its linear memories here, where the platform can map files.
pub(super) fn configure(config: &mut Config) {
    config.memory_reservation(MEMORY_BYTES_MAX).memory_may_move(false);
    if cfg!(target_os = "linux") {
        config.with_host_memory(Arc::new(GuestMemoryCreator));
        // An image of the initial data would be mapped over the region by
        // Wasmtime; copied data leaves all mapping to `Region`.
        config.memory_init_cow(false);
    }
}

thread_local! {
    /// What is created on this thread since [`capture`] began.
    static CREATED: RefCell<Option<Created>> = const { RefCell::new(None) };
}

/// Regions of memories, by the addresses that these have.
struct Created {
    /// Address space for a memory with 64-bit addresses.
    wide_bytes_max: u64,
    narrow: Vec<Arc<Region>>,
    wide: Vec<Arc<Region>>,
}

/// Runs `f`, which instantiates a guest, and answers the region of the memory that was
/// created meanwhile and that its engine computes in: the only one, or if others have
/// 32-bit addresses, the only one with 64-bit ones, which gets so much address space.
///
/// Wasmtime creates memories on the thread that instantiates, and does not say
/// for which store.
pub(super) fn capture<T>(wide_bytes_max: u64, f: impl FnOnce() -> T) -> (T, Option<Arc<Region>>) {
    CREATED.set(Some(Created { wide_bytes_max, narrow: Vec::new(), wide: Vec::new() }));
    let value = f();
    let created = CREATED.take().map(
        |Created { narrow, wide, .. }| {
            if wide.is_empty() { narrow } else { wide }
        },
    );
    let region = created.and_then(|regions| <[_; 1]>::try_from(regions).ok());
    (value, region.map(|[region]| region))
}

/// Creates linear memories that files can be mapped into.
struct GuestMemoryCreator;

// SAFETY: a region is reserved once, with at least as many bytes as are asked for and the
// guard behind them, stays where it is, is zero at first, and is accessible up to exactly
// `byte_size`.
unsafe impl MemoryCreator for GuestMemoryCreator {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let is_wide = ty.is_64();
        let wide_bytes_max = CREATED.with_borrow(|created| {
            created.as_ref().filter(|_| is_wide).map(|created| created.wide_bytes_max as usize)
        });
        // Never less than Wasmtime asks for, which may have compiled accordingly.
        let asked = reserved_size_in_bytes.or(maximum).unwrap_or(minimum);
        let capacity = match is_wide {
            true => wide_bytes_max.unwrap_or(asked).max(asked),
            false => asked.max(MEMORY_BYTES_MAX as usize),
        };
        if minimum > capacity {
            return Err(format!("a memory of {minimum} bytes exceeds {capacity} bytes"));
        }
        let region = Region::new(capacity, guard_size_in_bytes).and_then(|region| {
            region.grow(minimum)?;
            Ok(Arc::new(region))
        });
        let region = region.map_err(|e| {
            let reserved = capacity.saturating_add(guard_size_in_bytes);
            format!(
                "cannot reserve {reserved} bytes of address space for a sandbox ({e}); raise \
                 `ulimit -v`"
            )
        })?;
        CREATED.with_borrow_mut(|created| {
            if let Some(created) = created {
                let regions = if is_wide { &mut created.wide } else { &mut created.narrow };
                regions.push(region.clone());
            }
        });
        Ok(Box::new(GuestMemory(region)))
    }
}

struct GuestMemory(Arc<Region>);

// SAFETY: see the creator.
unsafe impl LinearMemory for GuestMemory {
    fn byte_size(&self) -> usize {
        self.0.byte_size()
    }

    fn byte_capacity(&self) -> usize {
        self.0.byte_capacity()
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        Ok(self.0.grow(new_size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Write as _;

    use moewe_memory::{catch_faults, page_size};
    use wasmtime::{Engine, Instance, Module, Store, TypedFunc};

    use super::*;
    use crate::sandbox::program::{config, wide_config};

    /// A guest that reads and writes bytes of its memory of two pages.
    struct Guest {
        store: Store<()>,
        region: Arc<Region>,
        get: TypedFunc<u32, u32>,
        set: TypedFunc<(u32, u32), ()>,
        grow: TypedFunc<u32, i32>,
    }

    impl Guest {
        fn new() -> Self {
            let engine = Engine::new(&config()).unwrap();
            let wasm = wat::parse_str(
                r#"(module
                    (memory (export "memory") 2)
                    (data (i32.const 8) "data")
                    (func (export "get") (param i32) (result i32) (i32.load8_u (local.get 0)))
                    (func (export "set") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
                    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"#,
            )
            .unwrap();
            let module = Module::new(&engine, &wasm).unwrap();
            let mut store = Store::new(&engine, ());
            store.set_epoch_deadline(1);
            let (instance, region) = capture(0, || Instance::new(&mut store, &module, &[]));
            let instance = instance.unwrap();
            let get = instance.get_typed_func(&mut store, "get").unwrap();
            let set = instance.get_typed_func(&mut store, "set").unwrap();
            let grow = instance.get_typed_func(&mut store, "grow").unwrap();
            Self { store, region: region.expect("one memory was created"), get, set, grow }
        }

        fn get(&mut self, address: u64) -> u8 {
            self.get.call(&mut self.store, address as u32).unwrap() as u8
        }

        fn set(&mut self, address: u64, byte: u8) {
            self.set.call(&mut self.store, (address as u32, byte.into())).unwrap();
        }
    }

    /// A file of `n` pages, each full of its number and one more.
    fn file(n: u64) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<_> = (0..n * page_size()).map(|i| (i / page_size()) as u8 + 1).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn what_is_attached_to_a_region_the_guest_sees() {
        let (mut guest, page) = (Guest::new(), page_size());
        let at = guest.region.attach(&file(2), page + 32, page - 32, 2 * page).unwrap();
        assert_eq!((at, guest.get(at)), (2 * page + 32, 2));
        assert_eq!(guest.get(8), b'd', "memory beside the window keeps its bytes");
        guest.set(at, 7);
        assert_eq!(guest.get(at), 7);
        guest.region.detach(2 * page, page).unwrap();
        assert_eq!(guest.get(at), 0);
    }

    #[test]
    fn a_memory_grows_in_place_and_zeroed() {
        let (mut guest, page) = (Guest::new(), page_size());
        let low = guest.region.attach(&file(1), 0, page, page).unwrap();
        assert_eq!(guest.grow.call(&mut guest.store, 30_000).unwrap(), 2);
        assert_eq!(guest.get(low), 1, "a window outlives growth");
        assert_eq!(guest.get(3 << 16), 0);
        let high = guest.region.attach(&file(1), 0, page, 1 << 30).unwrap();
        assert_eq!(guest.get(high), 1);
        assert_eq!(guest.grow.call(&mut guest.store, 1 << 16).unwrap(), -1, "4 GiB are the limit");
    }

    #[test]
    fn a_memory_that_is_gone_leaves_nothing_mapped() {
        let guest = Guest::new();
        let region = Arc::downgrade(&guest.region);
        guest.region.attach(&file(1), 0, page_size(), 0).unwrap();
        drop(guest);
        assert!(region.upgrade().is_none(), "the store and its memory held the region alone");
    }

    #[test]
    fn two_memories_are_none_to_attach_to() {
        let engine = Engine::new(&config()).unwrap();
        let wasm = wat::parse_str("(module (memory 1) (memory 1))").unwrap();
        let module = Module::new(&engine, &wasm).unwrap();
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        let (instance, region) = capture(0, || Instance::new(&mut store, &module, &[]));
        instance.unwrap();
        assert!(region.is_none());
    }

    #[test]
    fn a_page_that_is_gone_becomes_zeros_to_the_guest() {
        let (mut guest, page) = (Guest::new(), page_size());
        let file = file(2);
        guest.region.attach(&file, 0, 2 * page, page).unwrap();
        let region = guest.region.clone();
        catch_faults(Some(&region), || {
            assert_eq!(guest.get(2 * page), 2);
            file.set_len(page).unwrap();
            assert_eq!(guest.get(page), 1);
            assert!(!region.is_lost());
            assert_eq!(guest.get(2 * page), 0);
            assert!(region.is_lost());
            assert_eq!(guest.get(page), 1, "what is there stays");
        });
        assert!(!Guest::new().region.is_lost());
    }

    #[test]
    fn a_memory_with_64_bit_addresses_has_files_beyond_4_gib() {
        let engine = Engine::new(&wide_config(false)).unwrap();
        let wasm = wat::parse_str(
            r#"(module
                (memory $face 1)
                (memory $wide i64 1)
                (func (export "get") (param i64) (result i32)
                    (i32.load8_u $wide (local.get 0)))
                (func (export "grow") (param i64) (result i64)
                    (memory.grow $wide (local.get 0))))"#,
        )
        .unwrap();
        let module = Module::new(&engine, &wasm).unwrap();
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        let (instance, region) =
            capture(8 << 30, || Instance::new(&mut store, &module, &[]).unwrap());
        let region = region.expect("the memory with 64-bit addresses");
        let grow = instance.get_typed_func::<u64, i64>(&mut store, "grow").unwrap();
        let get = instance.get_typed_func::<u64, u32>(&mut store, "get").unwrap();
        assert_eq!(grow.call(&mut store, 100_000).unwrap(), 1);
        let at = region.attach(&file(2), 0, 2 * page_size(), 6 << 30).unwrap();
        assert_eq!(get.call(&mut store, at + page_size()).unwrap(), 2);
        assert!(get.call(&mut store, 7 << 30).is_err(), "nothing is accessible there");
        assert_eq!(grow.call(&mut store, 100_000).unwrap(), -1, "8 GiB are the limit");
    }
}
