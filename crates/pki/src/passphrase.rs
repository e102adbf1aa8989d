//! Keys out of what people remember.

use std::num::NonZeroU32;

use ring::pbkdf2;
use zeroize::Zeroizing;

use crate::Dek;

/// Bytes of a salt.
pub const SALT_LENGTH: usize = 16;
/// Rounds that make a guess cost some tenths of a second.
pub const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");

/// The key of a passphrase: PBKDF2 with HMAC-SHA256. Takes some tenths of a second with [`ROUNDS`].
pub fn derive_key(passphrase: &[u8], salt: &[u8; SALT_LENGTH], rounds: NonZeroU32) -> Dek {
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, passphrase, key.as_mut());
    Dek::from_bytes(key.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrase_salt_and_rounds_all_count() {
        let rounds = NonZeroU32::new(10).unwrap();
        let key = derive_key(b"passphrase", &[1; 16], rounds);
        assert_eq!(key, derive_key(b"passphrase", &[1; 16], rounds));
        assert_ne!(key, derive_key(b"Passphrase", &[1; 16], rounds));
        assert_ne!(key, derive_key(b"passphrase", &[2; 16], rounds));
        assert_ne!(key, derive_key(b"passphrase", &[1; 16], NonZeroU32::new(11).unwrap()));
    }
}
