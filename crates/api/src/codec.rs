//! How messages are encoded for gRPC and decoded again.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Bytes of the two buffers that each call begins with; they grow with what they hold. Most calls are smaller, and what
/// is below 1 KiB comes out of the allocator's caches, which tonic's own 8 KiB do not.
const BUFFER: usize = 960;
/// Bytes of messages on a stream that are sent together, if so many are waiting.
const TOGETHER: usize = 32 << 10;

/// Protocol Buffers, with buffers for small calls.
#[derive(Debug, Clone)]
pub struct SmallCalls<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCalls<T, U> {
    fn default() -> Self {
        SmallCalls(PhantomData)
    }
}

impl<T, U> Codec for SmallCalls<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, TOGETHER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, TOGETHER))
    }
}
