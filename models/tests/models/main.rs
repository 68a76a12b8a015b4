//! Models: resolving names, fetching by HTTP from a server in the test, and
//! making them of random numbers.

mod generate;
mod pull;
mod resolve;
mod server;
