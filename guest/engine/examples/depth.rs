//! Temporary.
use moewe_engine::native::Folder;
use moewe_engine::{Context, Model};
use std::path::Path;
use std::rc::Rc;
fn cpu() -> f64 {
    std::fs::read_to_string("/proc/self/schedstat")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse::<f64>()
        .unwrap()
        / 1e9
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (folder, name) = Folder::of(Path::new(&args[1])).unwrap();
    let model = Rc::new(Model::load(&folder, &name, u64::MAX).unwrap());
    let n_vocab = model.info().n_vocab;
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % n_vocab;
    for depth in args[2].split(',') {
        let depth: usize = depth.parse().unwrap();
        let n_gen: usize = args[3].parse().unwrap();
        let mut c = Context::new(model.clone(), None).unwrap();
        let s = cpu();
        if depth > 0 {
            c.feed(&(0..depth).map(token).collect::<Vec<_>>()).unwrap();
        }
        let pp = depth as f64 / (cpu() - s);
        let s = cpu();
        for i in 0..n_gen {
            c.feed(&[token(i)]).unwrap();
        }
        println!("depth {depth}: prefill {pp:.1} decode {:.2}", n_gen as f64 / (cpu() - s));
    }
}
