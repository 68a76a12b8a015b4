//! Control flow between vector instructions.

/// Does `$body` for `$step` from 0 to `$n` less one, one after another and each with
/// its constants: shifts by a variable are slow. `$n` must be known when this is
/// compiled, and at most 16.
///
/// With `$n_steps`, only so many of them are done, 1 to `$n`, which must not be known
/// then. In a loop, Wasmtime would look at every step whether the guest shall stop,
/// and keep no vector in a register meanwhile. A plain sequence would be rearranged
/// by the compiler until it needs more registers than there are. What may end behind
/// each step is left as it is.
macro_rules! steps {
    ($n:expr, |$step:ident| $body:block) => {
        $crate::simd::steps!(@ $n, $step, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($n:expr, $n_steps:expr, |$step:ident| $body:block) => {
        'steps: {
            $crate::simd::steps!($n, |$step| {
                $body
                if $n_steps == $step + 1 {
                    break 'steps;
                }
            })
        }
    };
    (@ $n:expr, $step:ident, $body:block, $($i:literal)*) => {{
        $(
            if $i < $n {
                let $step = $i;
                $body
            }
        )*
    }};
}
pub(crate) use steps;
