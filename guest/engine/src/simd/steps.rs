//! Control flow between vector instructions.

/// Does `$body` for steps 0, 1, ..., of which there are `$n_steps`: 1 to `$n`,
/// which is known when this is compiled, and at most 16. `$n_steps` must not be
/// known then.
///
/// In a loop, Wasmtime would look at every step whether the guest shall stop,
/// and keep no vector in a register meanwhile. A plain sequence would be
/// rearranged by the compiler until it needs more registers than there are. What
/// may end behind each step is left as it is.
macro_rules! steps {
    ($n:expr, $n_steps:expr, |$step:ident| $body:block) => {
        $crate::simd::steps!(@ $n, $n_steps, $step, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $n:expr, $n_steps:expr, $step:ident, $body:block, $($i:literal)*) => {
        'steps: {
            $(
                if $i < $n {
                    let $step = $i;
                    $body
                    if $n_steps == $i + 1 {
                        break 'steps;
                    }
                }
            )*
        }
    };
}
pub(crate) use steps;
