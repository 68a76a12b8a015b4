//! Traits whose calls can cross as messages, in the format of
//! [postcard](https://postcard.jamesmunns.com/wire-format).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value as a message.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("messages have no values that cannot be written")
}

/// The value that a message has. Both ends are parts of one component, built together.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    postcard::from_bytes(bytes).expect("a message of the other end of this protocol")
}

/// Defines a trait, a client of it that sends each call as a message, and a function that
/// answers such messages with an implementation of the trait.
macro_rules! interface {
    (
        $(#[$meta:meta])*
        trait $Trait:ident, client $Client:ident, fn $answer:ident;
        $(
            $(#[$fn_meta:meta])*
            fn $name:ident($($argument:ident: $Type:ty),* $(,)?) $(-> $Answer:ty)?;
        )*
    ) => {
        $(#[$meta])*
        pub trait $Trait {
            $(
                $(#[$fn_meta])*
                #[allow(clippy::too_many_arguments)]
                fn $name(&self, $($argument: $Type),*) $(-> $Answer)?;
            )*
        }

        #[derive(serde::Serialize, serde::Deserialize)]
        #[allow(non_camel_case_types)]
        enum Call {
            $($name { $($argument: $Type),* },)*
        }

        /// Sends calls: `F` gets messages, and brings their answers.
        pub struct $Client<F: Fn(&[u8]) -> Vec<u8>>(pub F);

        impl<F: Fn(&[u8]) -> Vec<u8>> $Trait for $Client<F> {
            $(
                fn $name(&self, $($argument: $Type),*) $(-> $Answer)? {
                    let call = $crate::message::encode(&Call::$name { $($argument),* });
                    $crate::message::decode(&(self.0)(&call))
                }
            )*
        }

        /// Makes the call that a message of the client asks for, and returns the answer's
        /// message.
        pub fn $answer(to: &dyn $Trait, message: &[u8]) -> Vec<u8> {
            match $crate::message::decode(message) {
                $(
                    Call::$name { $($argument),* } => {
                        $crate::message::encode(&to.$name($($argument),*))
                    }
                )*
            }
        }
    };
}
pub(crate) use interface;
