//! `moewe:inference/experts` where nothing can be attached: there is no store.

use crate::Provider;
use crate::bindings::exports::moewe::inference::experts::{
    Capacity, Choice, Guest, GuestStore, Piece, Place, Shape, Store, Utf8,
};
use crate::bindings::exports::moewe::inference::weights::Error;

/// A store, of which there is none.
pub(crate) enum NoStore {}

impl Guest for Provider {
    type Store = NoStore;
}

impl GuestStore for NoStore {
    fn open(_files: Vec<Utf8>, _shape: Shape) -> Result<Option<Store>, Error> {
        Ok(None)
    }

    fn add_layer(&self, _layer: u32, _pieces: Vec<Piece>) -> Result<(), Error> {
        match *self {}
    }

    fn ready(&self) -> Result<Capacity, Error> {
        match *self {}
    }

    fn demand(&self, _layer: u32, _choices: Vec<Choice>) -> Result<Vec<Place>, Error> {
        match *self {}
    }

    fn wait(&self, _slot: u32) -> Result<(), Error> {
        match *self {}
    }

    fn attach(&self, _slot: u32, _offset: u64, _length: u64, _address: u64) -> Result<(), Error> {
        match *self {}
    }

    fn release(&self) -> Result<(), Error> {
        match *self {}
    }

    fn prefetch(&self, _layer: u32, _experts: Vec<u32>) {
        match *self {}
    }
}
