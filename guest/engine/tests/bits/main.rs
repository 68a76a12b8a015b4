//! Ways of computing that must give the same bits.

mod context;
mod speculation;
mod store;
mod team;
