//! What reads bytes of a peer or of a disk, as functions of bytes, for the fuzz targets. Not for anybody else.

use crate::dek_state::DekState;
use crate::key_block::KeyBlock;
use crate::{Kek, csr};

/// A node's key file, opened without a key and with one.
pub fn key_file(text: &[u8], kek: &Kek) -> bool {
    let Ok(mut block) = KeyBlock::parse(text) else { return false };
    let mut read = false;
    for kek in [None, Some(kek)] {
        read |= block.key(kek).is_ok();
        read |=
            DekState::from_headers(|name| block.header(name), kek).is_ok_and(|deks| deks.current.is_some());
    }
    let headers = block.own_headers().cloned().collect();
    block.set_headers(headers);
    let _ = block.encode();
    read
}

/// The public key in a request for a certificate.
pub fn csr(request: &[u8]) -> bool {
    csr::public_key_of(request).is_ok()
}
