//! Compares the policies with Belady's optimum: `policies [TRACE...]`. Without a
//! trace, made-up ones.

use std::fs::File;

use moewe_residency::trace::{Header, Reader, Record, TraceError};
use moewe_workshop::simulate::{Capacity, Chooser, Counts, compare};
use moewe_workshop::synthetic::Routing;

/// Slots, as a share of what one token takes; and of all experts.
const SHARES_OF_TOKEN: &[f64] = &[0.5, 0.9, 1.5];
const SHARES_OF_ALL: &[f64] = &[0.25, 0.5, 0.75];

fn main() -> Result<(), TraceError> {
    let paths: Vec<_> = std::env::args_os().skip(1).collect();
    for path in &paths {
        let reader = Reader::new(File::open(path)?)?;
        let header = reader.header().clone();
        print(&header.model, &header, &reader.collect::<Result<Vec<_>, _>>()?);
    }
    if paths.is_empty() {
        let kinds = [(0.0, 0.0, 1), (0.0, 0.3, 1), (0.5, 0.0, 1), (0.5, 0.3, 1), (0.5, 0.4, 8)];
        for (skew, persistence, memory) in kinds.into_iter().chain([(1.0, 0.3, 1)]) {
            let routing = Routing {
                n_layer: 24,
                n_expert: 64,
                n_expert_used: 8,
                n_token: 800,
                n_topic_token: 200,
                skew,
                persistence,
                memory,
                ..Routing::default()
            };
            let name = format!("skew {skew}, persistence {persistence} of {memory} tokens");
            print(&name, &routing.header(), &routing.records());
        }
    }
    Ok(())
}

fn print(name: &str, header: &Header, records: &[Record]) {
    println!("\n{name}: hits in per cent\n");
    let n_token = header.n_layer * header.n_expert_used;
    let n_all = header.n_layer * header.n_expert;
    let of = |n: usize, shares: &[f64]| -> Vec<usize> {
        shares.iter().map(|share| (n as f64 * share) as usize).collect()
    };
    let mut capacities = [of(n_token, SHARES_OF_TOKEN), of(n_all, SHARES_OF_ALL)].concat();
    capacities.sort_unstable();
    for (i, capacity) in capacities.into_iter().enumerate() {
        let results = compare(header, records, Capacity::Slots(capacity));
        if i == 0 {
            let names: Vec<_> = results.iter().map(|(chooser, _)| chooser.to_string()).collect();
            println!("| slots | of a token | of all | {} |", names.join(" | "));
            println!("|--:|--:|--:|{}", "--:|".repeat(names.len()));
        }
        let cell = |(_, counts): &(Chooser, Counts)| format!("{:.1}", 100.0 * counts.hit_rate());
        let cells: Vec<_> = results.iter().map(cell).collect();
        let [of_token, of_all] = [n_token, n_all].map(|n| capacity as f64 / n as f64);
        println!("| {capacity} | {of_token:.2} | {of_all:.2} | {} |", cells.join(" | "));
    }
}
