//! Experts in the slots of a store compute the same bits as mapped ones.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use moewe_engine::native::{Folder, Member};
use moewe_engine::weights::{ExpertStore, ExpertTable, Piece, Place, Source, Weights, Window};
use moewe_engine::{Context, Error, ErrorKind, LoadOptions, Model, Result};
use moewe_fixtures::{TOKENS, model};

/// How a store behaves.
#[derive(Debug, Clone, Copy)]
struct Rules {
    page_size: usize,
    n_demand_max: usize,
    /// What the KV cache and long batches may take.
    bytes_max: u64,
    /// Slots beyond those of one demand.
    n_spare: usize,
    /// Whether all that is missing is said to be loaded, none of it, or every
    /// second expert.
    loaded: Loaded,
}

const RULES: Rules = Rules {
    page_size: 4096,
    n_demand_max: 3,
    bytes_max: u64::MAX,
    n_spare: 1,
    loaded: Loaded::None,
};

#[derive(Debug, Clone, Copy)]
enum Loaded {
    All,
    None,
    EverySecond,
}

/// Memory whose bytes change while windows show it.
struct Memory {
    base: *mut u8,
    length: usize,
}

// SAFETY: an address; whoever reads or writes behind it says why they may.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(length: usize) -> Self {
        let bytes: Box<[u8]> = vec![0; length].into();
        Self { base: Box::into_raw(bytes).cast(), length }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length);
        // SAFETY: within the memory. The engine looks into a slot between a
        // demand, or the wait for it, and the release only, and this is called
        // in neither time.
        unsafe { self.base.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let bytes = std::ptr::slice_from_raw_parts_mut(self.base, self.length);
        // SAFETY: made by `Box::into_raw` of such a slice.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

struct SlotWindow(Arc<Memory>, Range<usize>);

impl Window for SlotWindow {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the memory lives as long as the window; see `Memory::write`.
        let slot = unsafe { std::slice::from_raw_parts(self.0.base, self.0.length) };
        &slot[self.1.clone()]
    }
}

/// A store that some members share.
struct Store {
    rules: Rules,
    n_members: usize,
    file: Arc<Vec<u8>>,
    layers: BTreeMap<usize, Vec<Piece>>,
    n_expert: usize,
    slot_bytes: usize,
    slots: Vec<Arc<Memory>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    n_demands: usize,
    /// Which expert of which layer each slot holds.
    held: BTreeMap<usize, (usize, usize)>,
    demand: Option<Demand>,
    /// How often the engine waited, and predicted.
    n_waits: usize,
    n_predictions: usize,
}

struct Demand {
    layer: usize,
    experts: Vec<usize>,
    places: Vec<Place>,
    is_there: Vec<bool>,
    n_released: usize,
}

impl Store {
    fn new(rules: Rules, n_members: usize, file: Arc<Vec<u8>>, model: &ExpertTable<'_>) -> Self {
        assert_eq!(model.files.len(), 1);
        let layers: BTreeMap<_, _> = model.layers.iter().cloned().collect();
        let mut store = Self {
            rules,
            n_members,
            file,
            layers,
            n_expert: model.n_expert,
            slot_bytes: 0,
            slots: Vec::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        for &layer in store.layers.keys() {
            for expert in 0..store.n_expert {
                let ends = store.pieces(layer, expert).into_iter().map(|(at, p)| at + p.len());
                let end = ends.max().unwrap().next_multiple_of(rules.page_size);
                store.slot_bytes = store.slot_bytes.max(end);
            }
        }
        let n_slots = rules.n_demand_max + rules.n_spare;
        store.slots = (0..n_slots).map(|_| Arc::new(Memory::new(store.slot_bytes))).collect();
        store
    }

    /// Where in a slot the pieces of an expert lie, and their bytes.
    fn pieces(&self, layer: usize, expert: usize) -> Vec<(usize, &[u8])> {
        let all = &self.layers[&layer];
        let n = all.len() / self.n_expert;
        let mut start = 0;
        let place = |piece: &Piece| {
            let at = start + piece.offset as usize % self.rules.page_size;
            start = (at + piece.length as usize).next_multiple_of(self.rules.page_size);
            (at, &self.file[piece.offset as usize..(piece.offset + piece.length) as usize])
        };
        all[expert * n..(expert + 1) * n].iter().map(place).collect()
    }

    fn load(&self, slot: usize, layer: usize, expert: usize) {
        for (at, bytes) in self.pieces(layer, expert) {
            self.slots[slot].write(at, bytes);
        }
    }

    fn demand(&self, n_before: usize, layer: usize, experts: &[usize]) -> Vec<Place> {
        let mut state = self.state.lock().unwrap();
        while state.n_demands == n_before && state.demand.is_some() {
            state = self.changed.wait(state).unwrap();
        }
        if state.n_demands == n_before {
            state.n_demands += 1;
            let demand = self.begin(&mut state, layer, experts);
            state.demand = Some(demand);
        }
        let demand = state.demand.as_ref().unwrap();
        assert!(state.n_demands == n_before + 1 && demand.layer == layer);
        assert_eq!(demand.experts, experts);
        demand.places.clone()
    }

    fn begin(&self, state: &mut State, layer: usize, experts: &[usize]) -> Demand {
        assert!(experts.len() <= self.rules.n_demand_max);
        let has = |state: &State, expert| {
            state.held.iter().find(|(_, held)| **held == (layer, expert)).map(|(&slot, _)| slot)
        };
        // From the last slot to the first, but from another one each time.
        let n = self.slots.len();
        let shift = state.n_demands * 3;
        let order: Vec<_> = (0..n).rev().map(|slot| (slot + shift) % n).collect();
        let mut demand = Demand {
            layer,
            experts: experts.to_vec(),
            places: Vec::new(),
            is_there: Vec::new(),
            n_released: 0,
        };
        for (i, &expert) in experts.iter().enumerate() {
            if let Some(slot) = has(state, expert) {
                demand.places.push(Place { slot, loaded: true });
                demand.is_there.push(true);
                continue;
            }
            let is_free = |slot: &&usize| {
                let held = state.held.get(slot);
                held.is_none_or(|(l, e)| *l != layer || !experts.contains(e))
            };
            let slot = *order.iter().find(is_free).unwrap();
            state.held.insert(slot, (layer, expert));
            let loaded = match self.rules.loaded {
                Loaded::All => true,
                Loaded::None => false,
                Loaded::EverySecond => i % 2 == 1,
            };
            self.slots[slot].write(0, &vec![0xa5; self.slot_bytes]);
            if loaded {
                self.load(slot, layer, expert);
            }
            demand.places.push(Place { slot, loaded });
            demand.is_there.push(loaded);
        }
        demand
    }

    fn wait(&self, slot: usize) {
        let state = &mut *self.state.lock().unwrap();
        state.n_waits += 1;
        let demand = state.demand.as_mut().expect("a demand to wait for");
        let i = demand.places.iter().position(|place| place.slot == slot).unwrap();
        if !demand.is_there[i] {
            demand.is_there[i] = true;
            self.load(slot, demand.layer, demand.experts[i]);
        }
    }

    fn release(&self) {
        let mut state = self.state.lock().unwrap();
        let demand = state.demand.as_mut().expect("a demand to release");
        demand.n_released += 1;
        if demand.n_released == self.n_members {
            // Whoever looks too late sees nothing of use.
            let demand = state.demand.take().unwrap();
            for (place, is_there) in demand.places.iter().zip(demand.is_there) {
                if place.slot % 2 == 0 || !is_there {
                    self.slots[place.slot].write(0, &vec![0x5a; self.slot_bytes]);
                    state.held.remove(&place.slot);
                }
            }
            self.changed.notify_all();
        }
    }
}

/// What one member has of a store.
struct Handle {
    store: Arc<Store>,
    n_demands: std::cell::Cell<usize>,
    holds: std::cell::Cell<bool>,
    is_first: bool,
}

impl ExpertStore for Handle {
    fn page_size(&self) -> usize {
        self.store.rules.page_size
    }

    fn slot_bytes(&self) -> usize {
        self.store.slot_bytes
    }

    fn n_demand_max(&self) -> usize {
        self.store.rules.n_demand_max
    }

    fn bytes_max(&self) -> u64 {
        self.store.rules.bytes_max
    }

    fn demand(&self, layer: usize, choices: &[(usize, usize)]) -> Result<Vec<Place>> {
        assert!(!self.holds.replace(true), "the last demand was not released");
        assert!(choices.is_sorted_by(|a, b| a < b), "{choices:?}");
        let mut experts: Vec<_> = choices.iter().map(|choice| choice.0).collect();
        experts.dedup();
        let n_before = self.n_demands.replace(self.n_demands.get() + 1);
        Ok(self.store.demand(n_before, layer, &experts))
    }

    fn wait(&self, slot: usize) -> Result<()> {
        self.store.wait(slot);
        Ok(())
    }

    fn window(&self, slot: usize, pages: Range<usize>) -> Result<Box<dyn Window>> {
        assert!(self.holds.get());
        let page = self.page_size();
        assert!(pages.start.is_multiple_of(page) && pages.end.is_multiple_of(page));
        Ok(Box::new(SlotWindow(self.store.slots[slot].clone(), pages)))
    }

    fn release(&self) -> Result<()> {
        assert!(self.holds.replace(false), "nothing was demanded");
        self.store.release();
        Ok(())
    }

    fn prefetch(&self, layer: usize, experts: &[usize]) {
        assert!(self.is_first, "one member suffices");
        assert!(experts.is_sorted_by(|a, b| a < b), "{experts:?}");
        assert!(self.store.layers.contains_key(&layer));
        assert!(experts.iter().all(|&expert| expert < self.store.n_expert));
        self.store.state.lock().unwrap().n_predictions += 1;
    }
}

/// Files whose experts are in a store, which the first member to ask makes.
struct Stored<'a> {
    folder: &'a Folder,
    file: &'a Arc<Vec<u8>>,
    rules: Rules,
    n_members: usize,
    store: &'a Mutex<Option<Arc<Store>>>,
    is_first: bool,
}

impl Weights for Stored<'_> {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        self.folder.open(name)
    }

    fn expert_store(&self, model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        let make = || Arc::new(Store::new(self.rules, self.n_members, self.file.clone(), model));
        let store = self.store.lock().unwrap().get_or_insert_with(make).clone();
        assert!(store.layers.iter().eq(model.layers.iter().map(|(i, pieces)| (i, pieces))));
        let (n_demands, holds) = Default::default();
        Ok(Some(Box::new(Handle { store, n_demands, holds, is_first: self.is_first })))
    }
}

/// The bits of the logits behind batches of `n_batch` tokens.
fn logits(model: Model, tokens: &[u32], n_batch: usize) -> Vec<Vec<u32>> {
    let mut context = Context::new(Rc::new(model), None).unwrap();
    let feed = |tokens: &[u32]| {
        context.feed(tokens).unwrap();
        context.logits().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    tokens.chunks(n_batch).map(feed).collect()
}

fn mapped(path: &Path, tokens: &[u32], n_batch: usize) -> Vec<Vec<u32>> {
    let (folder, name) = Folder::of(path).unwrap();
    logits(Model::load(&folder, &name, u64::MAX, &LoadOptions::default()).unwrap(), tokens, n_batch)
}

/// What each member computes; the members share a store, or have one each.
fn stored(
    path: &Path,
    tokens: &[u32],
    n_batch: usize,
    rules: Rules,
    size: usize,
    is_shared: bool,
) -> Vec<Vec<Vec<u32>>> {
    let (folder, name) = Folder::of(path).unwrap();
    let file = Arc::new(std::fs::read(path).unwrap());
    let shared = Mutex::default();
    let n_members = if is_shared { size } else { 1 };
    thread::scope(|scope| {
        let member = |(rank, member): (usize, Member)| {
            let (folder, file, name, shared) = (&folder, &file, &name, &shared);
            scope.spawn(move || {
                let own = Mutex::default();
                let store = if is_shared { shared } else { &own };
                let is_first = rank == 0;
                let weights = Stored { folder, file, rules, n_members, store, is_first };
                let model = Model::load_in_team(
                    &weights,
                    name,
                    u64::MAX,
                    &LoadOptions::default(),
                    Box::new(member),
                )
                .unwrap();
                let logits = logits(model, tokens, n_batch);
                let store = store.lock().unwrap().clone().unwrap();
                let state = store.state.lock().unwrap();
                assert!(state.n_demands > 0);
                match rules.loaded {
                    Loaded::All => assert_eq!(state.n_waits, 0),
                    _ => assert!(state.n_waits > 0),
                }
                // A layer with experts foresees those of the next one.
                let foresees = store.layers.keys().any(|i| store.layers.contains_key(&(i + 1)));
                assert!(state.n_predictions > 0 || !foresees || !is_first || n_batch > 1);
                logits
            })
        };
        let threads: Vec<_> = Member::team(size).into_iter().enumerate().map(member).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn check(name: &str) {
    let tokens = &TOKENS[..6];
    let tight = Rules { n_demand_max: 2, n_spare: 0, ..RULES };
    let all_rules = [
        // Fewer at once than the router picks for a token.
        Rules { n_demand_max: 1, ..tight },
        tight,
        Rules { page_size: 1 << 16, n_spare: 2, loaded: Loaded::EverySecond, ..RULES },
        Rules { page_size: 32, n_demand_max: 64, loaded: Loaded::All, ..RULES },
    ];
    for quant in ["q4_k_m", "q8_0"] {
        let path = model(&format!("{name}-{quant}"));
        for n_batch in [1, tokens.len()] {
            let expected = mapped(&path, tokens, n_batch);
            assert!(expected.iter().flatten().any(|&x| x != expected[0][0]));
            for rules in all_rules {
                for (size, is_shared) in [(1, false), (2, true), (2, false)] {
                    let all = stored(&path, tokens, n_batch, rules, size, is_shared);
                    for (rank, got) in all.iter().enumerate() {
                        let what = format!("{name} {quant}, batches of {n_batch}, {rules:?}");
                        assert!(*got == expected, "{what}: rank {rank} of {size} differs");
                    }
                }
            }
        }
    }
}

/// A prompt is computed in as many batches as its memory wants.
#[test]
fn little_memory_computes_the_same() {
    let path = model("qwen2moe-q4_k_m");
    let text: Vec<u32> = (0..150).map(|i| i * 37 % 500).collect();
    let expected = mapped(&path, &text, text.len());
    for (bytes_max, size) in [(0, 1), (0, 2), (300_000, 2), (u64::MAX, 2)] {
        let rules = Rules { bytes_max, ..RULES };
        let all = stored(&path, &text, text.len(), rules, size, true);
        assert!(all.iter().all(|got| *got == expected), "{bytes_max} bytes, {size} members");
    }
}

#[test]
fn mixtral() {
    check("mixtral");
}

#[test]
fn qwen2moe() {
    check("qwen2moe");
}

#[test]
fn qwen3moe() {
    check("qwen3moe");
}

#[test]
fn olmoe() {
    check("olmoe");
}

#[test]
fn granitemoe() {
    check("granitemoe");
}

#[test]
fn dsv3() {
    check("dsv3");
}

#[test]
fn deepseekv2() {
    check("deepseekv2");
}

#[test]
fn gptoss() {
    check("gptoss");
}

#[test]
fn gemma4() {
    check("gemma4");
}

#[test]
fn llama4() {
    check("llama4");
}

/// A store whose disk breaks after some demands.
struct Breaking {
    handle: Handle,
    n_left: std::cell::Cell<usize>,
}

impl ExpertStore for Breaking {
    fn page_size(&self) -> usize {
        self.handle.page_size()
    }

    fn slot_bytes(&self) -> usize {
        self.handle.slot_bytes()
    }

    fn n_demand_max(&self) -> usize {
        self.handle.n_demand_max()
    }

    fn bytes_max(&self) -> u64 {
        self.handle.bytes_max()
    }

    fn demand(&self, layer: usize, choices: &[(usize, usize)]) -> Result<Vec<Place>> {
        self.handle.demand(layer, choices)
    }

    fn wait(&self, slot: usize) -> Result<()> {
        match self.n_left.get() {
            1 => {
                self.n_left.set(0);
                return Err(Error::new(ErrorKind::Weights, "the disk broke"));
            }
            n => self.n_left.set(n.saturating_sub(1)),
        }
        self.handle.wait(slot)
    }

    fn window(&self, slot: usize, pages: Range<usize>) -> Result<Box<dyn Window>> {
        self.handle.window(slot, pages)
    }

    fn release(&self) -> Result<()> {
        self.handle.release()
    }

    fn prefetch(&self, layer: usize, experts: &[usize]) {
        self.handle.prefetch(layer, experts);
    }
}

struct BreakingWeights<'a>(Stored<'a>, usize);

impl Weights for BreakingWeights<'_> {
    fn open(&self, name: &str) -> Result<Box<dyn Source>> {
        self.0.open(name)
    }

    fn expert_store(&self, model: &ExpertTable<'_>) -> Result<Option<Box<dyn ExpertStore>>> {
        let store =
            Arc::new(Store::new(self.0.rules, self.0.n_members, self.0.file.clone(), model));
        let (n_demands, holds) = Default::default();
        let handle = Handle { store, n_demands, holds, is_first: true };
        Ok(Some(Box::new(Breaking { handle, n_left: self.1.into() })))
    }
}

/// What failed can be tried again: nothing is held, and nothing was kept of it.
#[test]
fn a_failed_wait_leaves_the_context_as_it_was() {
    let path = model("qwen2moe-q4_k_m");
    let tokens = &TOKENS[..6];
    let expected = mapped(&path, tokens, 2);
    let (folder, name) = Folder::of(&path).unwrap();
    let (file, store) = (Arc::new(std::fs::read(&path).unwrap()), Mutex::default());
    let rules = RULES;
    for n in [1, 2, 9, 20] {
        let stored = Stored {
            folder: &folder,
            file: &file,
            rules,
            n_members: 1,
            store: &store,
            is_first: true,
        };
        let model =
            Model::load(&BreakingWeights(stored, n), &name, u64::MAX, &LoadOptions::default())
                .unwrap();
        let mut context = Context::new(Rc::new(model), None).unwrap();
        let mut n_failed = 0;
        for (tokens, expected) in tokens.chunks(2).zip(&expected) {
            let before = context.tokens().len();
            while let Err(error) = context.feed(tokens) {
                assert_eq!(error.kind(), ErrorKind::Weights);
                assert_eq!(context.tokens().len(), before);
                n_failed += 1;
            }
            let got: Vec<_> = context.logits().unwrap().iter().map(|x| x.to_bits()).collect();
            assert!(got == *expected, "after {n_failed} failures");
        }
        assert_eq!(n_failed, 1, "{n}");
    }
}
