//! Models, from resolving a name to fetching by HTTP from a server in the test.

mod pull;
mod resolve;
mod server;
