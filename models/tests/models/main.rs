//! Models: resolving names, fetching by HTTP from a server in the test, removing, making
//! them of random numbers, and packing them.

mod generate;
mod hub;
mod pack;
mod pull;
mod remove;
mod resolve;
mod server;
