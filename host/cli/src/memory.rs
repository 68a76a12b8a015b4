//! How much memory a model may take.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use moewe::{ExpertStats, MemoryOptions, PolicyKind, Prefetch};
use moewe_workshop::hottest_experts;

/// A budget of memory, and how experts share it.
#[derive(clap::Args)]
#[command(next_help_heading = "Models larger than memory")]
pub struct MemoryArgs {
    /// Take at most so much memory for everything: `4GiB`, or `50%` of what the
    /// machine or its control group has. Experts that do not fit are read when
    /// they are wanted
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<Budget>,
    /// Which expert makes room for another one: blend, lru, lfu, layer-lru
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub policy: PolicyKind,
    /// Slots for experts that every layer keeps
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub layer_floor: usize,
    /// Keep the experts in memory that this trace used most, in half of the
    /// slots
    #[arg(long, value_name = "TRACE")]
    pub pin: Option<PathBuf>,
    /// Read experts before they are wanted: always, never, or while it is found
    /// to save time
    #[arg(long, value_name = "WHEN", value_parser = prefetch(), default_value_t)]
    pub prefetch: Prefetch,
    /// Write to FILE which experts each token used, for `moewe simulate`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// An amount of memory: bytes, or a share of all there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    Bytes(u64),
    Percent(f64),
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no amount of memory; say 4GiB, 800MB or 50%");
        if let Some(number) = text.strip_suffix('%') {
            let percent = number.trim().parse().ok().filter(|p| (0.0..=100.0).contains(p));
            return percent.map(Self::Percent).ok_or_else(wrong);
        }
        text.parse::<ByteSize>().map(|size| Self::Bytes(size.as_u64())).map_err(|_| wrong())
    }
}

impl Budget {
    pub fn bytes(self) -> Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Percent(percent) => match memory_bytes() {
                0 => bail!("the size of this machine's memory is not known; say a number of bytes"),
                bytes => Ok((bytes as f64 * percent / 100.0) as u64),
            },
        }
    }
}

/// The memory of the machine, or of the control group if that may have less; 0 if it is not
/// known.
pub fn memory_bytes() -> u64 {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::everything()),
    );
    let all = system.total_memory();
    system.cgroup_limits().map_or(all, |group| group.total_memory.min(all))
}

impl MemoryArgs {
    /// What the user asked for; `None` if nothing.
    pub fn options(&self) -> Result<Option<MemoryOptions>> {
        let bytes = match (self.memory, &self.trace) {
            (Some(budget), _) => budget.bytes()?,
            // Whoever traces has all experts go through the store.
            (None, Some(_)) => u64::MAX,
            (None, None) => return Ok(None),
        };
        let mut options = MemoryOptions::new(bytes);
        options.policy = self.policy;
        options.layer_floor = self.layer_floor;
        options.prefetch = self.prefetch;
        options.trace = self.trace.clone();
        if let Some(path) = &self.pin {
            let failed = || format!("{}: cannot be read", path.display());
            options.pins = hottest_experts(path).with_context(failed)?;
        }
        Ok(Some(options))
    }
}

/// Reads `--prefetch`.
fn prefetch() -> impl TypedValueParser<Value = Prefetch> {
    let names = PossibleValuesParser::new(Prefetch::ALL.iter().map(|way| way.name()));
    names.map(|name| {
        let way = Prefetch::ALL.iter().find(|way| way.name() == name);
        *way.expect("the parser takes these names only")
    })
}

/// Prints how the experts did to stderr.
pub fn print_stats(stats: &ExpertStats, n_tokens: u64) {
    let size = |bytes: u64| ByteSize(bytes).to_string();
    eprintln!(
        "experts: {:.1} % of {} were in memory ({} slots of {}), {} evicted",
        stats.hit_rate() * 100.0,
        stats.hits + stats.misses,
        stats.n_slots,
        size(stats.slot_bytes),
        stats.evictions
    );
    eprintln!(
        "disk: {} read, {} a token, waited {:.2} s, {} retries; weights in memory: {}",
        size(stats.bytes_read),
        size(stats.bytes_read / n_tokens.max(1)),
        stats.stall.as_secs_f64(),
        stats.n_retries,
        size(stats.resident_bytes)
    );
    eprintln!(
        "prefetch: {} useful, {} late, {} wasted; now {}",
        stats.prefetch_useful,
        stats.prefetch_late,
        stats.prefetch_wasted,
        if stats.prefetch_on { "on" } else { "off" }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        assert_eq!("4GiB".parse(), Ok(Budget::Bytes(4 << 30)));
        assert_eq!("800 MB".parse(), Ok(Budget::Bytes(800_000_000)));
        assert_eq!("1000000".parse(), Ok(Budget::Bytes(1_000_000)));
        assert_eq!("12.5%".parse(), Ok(Budget::Percent(12.5)));
        for text in ["", "lots", "-1", "150%", "%"] {
            assert!(text.parse::<Budget>().unwrap_err().contains("4GiB"), "{text}");
        }
    }
}
