//! Who is measured.

use std::fmt;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Contender {
    /// The command, with the file as it is
    Moewe,
    /// The command, with a packed copy
    MoewePacked,
    /// The same engine built natively, with the same 128-bit kernels
    Native,
    /// The same without AVX-512: with the 16 vector registers that Wasmtime uses
    NativeAvx2,
    /// llama.cpp with all that this machine's processor has, except AMX
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// llama.cpp in Chromium
    Wllama,
}

impl Contender {
    pub const ALL: [Self; 6] = [
        Self::Moewe,
        Self::MoewePacked,
        Self::Native,
        Self::NativeAvx2,
        Self::LlamaCpp,
        Self::Wllama,
    ];
    /// What is compared with the others.
    pub const OURS: [Self; 2] = [Self::Moewe, Self::MoewePacked];

    /// Whether it is a command that answers a prompt.
    pub fn can_start(self) -> bool {
        matches!(self, Self::Moewe | Self::MoewePacked | Self::LlamaCpp)
    }
}

/// A contender with a number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    pub contender: Contender,
    pub threads: u32,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.contender {
            Contender::Moewe => "moewe",
            Contender::MoewePacked => "moewe packed",
            Contender::Native => "native",
            Contender::NativeAvx2 => "native AVX2",
            Contender::LlamaCpp => "llama.cpp",
            Contender::Wllama => "wllama",
        };
        write!(f, "{name} ×{}", self.threads)
    }
}

impl Lane {
    /// All contenders with all numbers of threads. A browser is given as many
    /// threads as it can have only: nobody would use it with one.
    pub fn all(contenders: &[Contender], threads: &[u32]) -> Vec<Self> {
        let most = threads.iter().max().copied();
        let lanes = contenders
            .iter()
            .flat_map(|&contender| threads.iter().map(move |&threads| Self { contender, threads }));
        lanes
            .filter(|lane| lane.contender != Contender::Wllama || Some(lane.threads) == most)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_the_most_threads_only() {
        let lanes = Lane::all(&[Contender::LlamaCpp, Contender::Wllama], &[1, 2]);
        let lanes: Vec<String> = lanes.iter().map(Lane::to_string).collect();
        assert_eq!(lanes, ["llama.cpp ×1", "llama.cpp ×2", "wllama ×2"]);
    }
}
