//! The server, spoken to over a socket: what clients send, what they accept, and what must not hurt others.
#![allow(clippy::unwrap_used, reason = "test program")]

mod admin;
mod broken;
mod client;
mod embeddings;
mod faults;
mod infill;
mod limits;
mod page;
mod prefix;
mod responses;
mod sampling;
mod streams;
mod structured;
mod tables;
mod tls;
