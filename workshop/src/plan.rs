//! What to expect of a model within a budget of memory, before it is loaded.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moewe::{
    Engine, Guest, KvFormat, MemoryOptions, Model, ModelOptions, Prefetch, RopeScaling,
    SessionOptions,
};
use moewe_gguf::Gguf;
use moewe_models::generate::{Shape, generate};
use moewe_models::{Silent, pack};

use crate::{Error, Result};

/// How long the disk is measured.
const DISK_TIME: Duration = Duration::from_millis(1500);
/// Tokens that the small model computes before the clock starts, and while it
/// runs.
const N_WARM: usize = 4;
const N_TIMED: usize = 24;
/// Of the experts that are foreseen to be used, so many are not, and others are
/// in their place: measured, see docs/performance.md.
const WRONG_GUESSES: f64 = 0.13;

/// How a model shall run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// The most bytes that the process may have.
    pub memory_bytes: u64,
    /// Tokens of context to have room for.
    pub n_ctx: u64,
    /// Threads that compute.
    pub n_threads: usize,
    /// The guest that computes, if not the one that suits.
    pub guest: Option<Guest>,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// How positions are scaled, if not as the file says.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether experts are read before they are wanted.
    pub prefetch: Prefetch,
}

/// What to expect.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Plan {
    /// The budget.
    pub memory_bytes: u64,
    /// The least that works.
    pub floor_bytes: u64,
    /// Weights that every token needs.
    pub dense_bytes: u64,
    /// The KV cache of the context.
    pub kv_bytes: u64,
    /// One expert.
    pub expert_bytes: u64,
    /// Experts of all layers.
    pub n_experts: u64,
    /// Those of them that lie in memory at a time.
    pub n_slots: u64,
    /// How many of a token's experts are found in memory, if all are used equally
    /// often.
    pub hit_rate: f64,
    /// What is read for each token.
    pub disk_bytes_per_token: u64,
    /// The disk's speed with reads of single experts; measured if anything is read.
    pub disk_bytes_per_second: Option<f64>,
    /// The speed of computing: weights that are gone through.
    pub compute_bytes_per_second: f64,
    /// The speed of decode.
    pub tokens_per_second: f64,
}

/// Plans how the model in `path` will run. Of its file only the header is read, and,
/// if not all experts fit, some of them to measure the disk. The speed of computing
/// is measured with a small random model of the same shape, at the same time. What is
/// expected is what comes when memory is full of experts.
///
/// # Errors
///
/// [`Error::TooLittleMemory`]; models and disks that cannot be read.
pub fn plan(engine: &Engine, path: &Path, conditions: Conditions) -> Result<Plan> {
    let Conditions { memory_bytes, n_ctx, n_threads, prefetch, .. } = conditions;
    let mut options = ModelOptions::default();
    options.threads = n_threads;
    options.kv_format = conditions.kv_format;
    options.rope_scaling = conditions.rope_scaling;
    options.memory = Some(MemoryOptions::new(memory_bytes));
    options.guest = conditions.guest;
    // The small model is computed in the same one.
    options.guest = Some(Model::guest_for(path, &options)?.0);
    // First, as what the process has counts.
    let needs = Model::memory_needs(engine, path, &options)?;
    let header = Header::read(path)?;
    let floor_bytes = needs.least(n_ctx);
    if memory_bytes < floor_bytes {
        let (path, bytes, least_bytes) = (path.into(), memory_bytes, floor_bytes);
        return Err(Error::TooLittleMemory { path, bytes, n_ctx, least_bytes });
    }
    let n_experts = needs.n_experts();
    let n_slots = needs.n_slots(memory_bytes, n_ctx);
    let hit_rate = if n_experts == 0 { 1.0 } else { n_slots as f64 / n_experts as f64 };

    let n_used = needs.n_expert_used();
    let n_layer = n_experts / header.n_expert.max(1);
    let used_bytes = n_layer * n_used * needs.expert_bytes();
    let read_bytes = used_bytes as f64 * (1.0 - hit_rate);
    let experts = (read_bytes > 0.0).then(|| (needs.expert_bytes(), n_used));
    let (compute_speed, disk_speed) = speeds(engine, path, &header, &options, experts)?;
    let dense_time = needs.dense_bytes() as f64 / compute_speed;
    let expert_time = used_bytes as f64 / compute_speed;
    let disk_time = disk_speed.map_or(0.0, |speed| read_bytes / speed);
    let token_time = match prefetch {
        // Within a layer, gate and up, two of the three matrices of an expert, are
        // computed while others are read, but for the last of them.
        Prefetch::Off => {
            let hidden = expert_time * 2.0 / 3.0 * (1.0 - 1.0 / n_used.max(1) as f64);
            dense_time + expert_time + disk_time - hidden.min(disk_time)
        }
        // While anything is computed, the next layer's experts are read as they are
        // foreseen; the disk reads those that are not wanted, too, and the processor
        // waits for what was not foreseen.
        _ => {
            let unforeseen = WRONG_GUESSES * disk_time;
            (dense_time + expert_time + unforeseen).max(disk_time + unforeseen)
        }
    };
    Ok(Plan {
        memory_bytes,
        floor_bytes,
        dense_bytes: needs.dense_bytes(),
        kv_bytes: needs.kv_bytes(n_ctx),
        expert_bytes: needs.expert_bytes(),
        n_experts,
        n_slots,
        hit_rate,
        disk_bytes_per_token: read_bytes as u64,
        disk_bytes_per_second: disk_speed,
        compute_bytes_per_second: compute_speed,
        tokens_per_second: 1.0 / token_time,
    })
}

/// What the header tells of the computation.
struct Header {
    n_expert: u64,
    /// A small model of the same shape.
    shape: Shape,
    is_packed: bool,
}

impl Header {
    fn read(path: &Path) -> Result<Self> {
        let header = Gguf::read(path)?.header;
        let metadata = &header.metadata;
        let arch = metadata.str("general.architecture")?.unwrap_or_default().to_owned();
        let number = |key: &str| -> Result<u64> {
            Ok(metadata.u32(&format!("{arch}.{key}"))?.unwrap_or_default().into())
        };
        let (n_head, kv_heads) =
            (number("attention.head_count")?, number("attention.head_count_kv")?);
        let kv_heads = if kv_heads == 0 { n_head } else { kv_heads };
        let n_embd = number("embedding_length")?;
        let head_dim = match number("attention.key_length")? {
            0 => n_embd / n_head.max(1),
            n => n,
        };
        let n_ff = match number("expert_feed_forward_length")? {
            0 => number("feed_forward_length")?,
            n => n,
        };
        let n_expert_used = number("expert_used_count")?;
        let whole = |n: u64| n.next_multiple_of(256).clamp(256, 1 << 16) as u32;
        // As many more heads as make whole blocks of 256, for each KV head as many.
        let (head_dim, group) = (head_dim.clamp(1, 1024), (n_head / kv_heads.max(1)).clamp(1, 64));
        let kv_heads = (1..=256)
            .find(|n| n >= &kv_heads && (n * group * head_dim).is_multiple_of(256))
            .unwrap_or(256);
        let shape = Shape {
            n_layer: 3,
            n_embd: whole(n_embd),
            n_head: (kv_heads * group) as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            n_expert: n_expert_used.clamp(1, 64) as u32,
            n_expert_used: n_expert_used.clamp(1, 64) as u32,
            n_ff_expert: whole(n_ff),
            n_vocab: 2048,
            n_ctx: 512,
        };
        Ok(Self {
            n_expert: number("expert_count")?,
            shape,
            is_packed: header.tensors.values().any(|t| t.ty.is_packed()),
        })
    }
}

/// Bytes of weights a second that the sandbox computes with in decode, and bytes a second
/// of reads of experts of so many bytes, so many at a time, if there are any. Both at the
/// same time, as they will be: a disk takes some of the processors' time.
fn speeds(
    engine: &Engine,
    path: &Path,
    header: &Header,
    options: &ModelOptions,
    experts: Option<(u64, u64)>,
) -> Result<(f64, Option<f64>)> {
    let folder = tempfile::tempdir().map_err(Error::NoRoom)?;
    let small = SmallModel::open(engine, folder.path(), header, options)?;
    let Some((expert_bytes, n_at_once)) = experts else {
        return Ok((small.speed(|| false)?, None));
    };
    std::thread::scope(|scope| {
        let disk = scope.spawn(|| disk_speed(path, expert_bytes, n_at_once));
        let compute_speed = small.speed(|| !disk.is_finished());
        let disk_speed = disk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((compute_speed?, Some(disk_speed?)))
    })
}

/// A model of the same shape and few layers.
struct SmallModel(Model);

impl SmallModel {
    fn open(
        engine: &Engine,
        folder: &Path,
        header: &Header,
        options: &ModelOptions,
    ) -> Result<Self> {
        let mut path: PathBuf = folder.join("small.gguf");
        generate(&path, &header.shape, 1, &mut Silent)?;
        if header.is_packed {
            let packed = folder.join("packed.gguf");
            pack::pack(&path, &packed, true, &mut Silent)?;
            path = packed;
        }
        let mut options = options.clone();
        options.memory = None;
        Ok(Self(Model::open(engine, &path, options)?))
    }

    /// Bytes of its weights that are computed with in a second, in decode; measured for as
    /// long as `goes_on` says, and for some tokens at least.
    fn speed(&self, goes_on: impl Fn() -> bool) -> Result<f64> {
        let mut session = self.0.session(SessionOptions::default())?;
        let mut times = Vec::new();
        while times.len() < N_WARM + N_TIMED || goes_on() {
            session.rewind(0)?;
            for i in 0..N_TIMED {
                let start = Instant::now();
                session.feed(&[i as u32])?;
                times.push(start.elapsed());
            }
        }
        let timed = &mut times[N_WARM..];
        timed.sort();
        let median = timed[timed.len() / 2].as_secs_f64();
        Ok(self.0.info().weight_bytes as f64 / median.max(1e-9))
    }
}

/// Bytes a second of reads of single experts at random places, as many at a time
/// as a token takes in a layer.
#[cfg(target_os = "linux")]
fn disk_speed(path: &Path, expert_bytes: u64, n_at_once: u64) -> Result<f64> {
    use std::sync::Arc;

    use moewe_disk::{DirectFile, Disk, DiskOptions, Storage, measure};

    let failed = |source| Error::Disk { path: path.into(), source };
    let file: Arc<dyn Storage> = Arc::new(DirectFile::open(path).map_err(|e| failed(e.into()))?);
    let disk = Disk::new(DiskOptions::default()).map_err(|e| failed(e.into()))?;
    let mut random = fastrand::Rng::with_seed(1);
    let (length, n) = (expert_bytes as usize, n_at_once as usize);
    measure(&disk, &file, length, n, DISK_TIME, |n| random.u64(0..n)).map_err(|e| failed(e.into()))
}

#[cfg(not(target_os = "linux"))]
fn disk_speed(path: &Path, _: u64, _: u64) -> Result<f64> {
    Err(Error::Disk { path: path.into(), source: "models larger than memory need Linux".into() })
}
