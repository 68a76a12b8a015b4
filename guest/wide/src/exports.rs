//! What the face calls.

use std::cell::RefCell;

use moewe_protocol::answer_inference;
use moewe_service::{Addresses, Platform, Service};

use crate::host::{self, Face};

thread_local! {
    static SERVICE: Service = const {
        let (host, team) = (&host::HOST, &Face);
        Service::new(Platform { host, team, addresses: Addresses::Files })
    };
    /// The message, and then the answer to it.
    static MESSAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes room for a message of so many bytes, and says where.
#[unsafe(no_mangle)]
extern "C" fn receive(len: u64) -> u64 {
    MESSAGE.with_borrow_mut(|message| {
        *message = vec![0; usize::try_from(len).expect("addresses have 64 bits")];
        message.as_mut_ptr().expose_provenance() as u64
    })
}

/// Answers the message, and says how long the answer is.
#[unsafe(no_mangle)]
extern "C" fn answer() -> u64 {
    let message = MESSAGE.take();
    let answer = SERVICE.with(|service| answer_inference(service, &message));
    let len = answer.len() as u64;
    MESSAGE.set(answer);
    len
}

/// Says where the answer is.
#[unsafe(no_mangle)]
extern "C" fn answered() -> u64 {
    MESSAGE.with_borrow(|answer| answer.as_ptr().expose_provenance() as u64)
}
