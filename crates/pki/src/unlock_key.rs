//! The key that unlocks managers: 32 bytes in memory, `SWMKEY-1-…` on paper.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rand::Rng as _;
use zeroize::Zeroizing;

use crate::{Error, SecretBytes};

const PREFIX: &str = "SWMKEY-1-";
/// Length of a generated key in bytes.
const LENGTH: usize = 32;

/// A key-encrypting key: what a locked manager's key file is encrypted with. Of any length when it comes from
/// elsewhere; 32 random bytes when generated here.
#[derive(Clone, PartialEq, Eq)]
pub struct Kek(SecretBytes);

impl Kek {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = vec![0; LENGTH];
        rand::rng().fill_bytes(&mut bytes);
        Self(SecretBytes::new(bytes))
    }

    /// The key of these bytes; `None` when there are none, which is how the API says "not locked".
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (!bytes.is_empty()).then(|| Self(SecretBytes::new(bytes.to_vec())))
    }

    /// The raw bytes, for the cluster object and for ciphers.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek([hidden])")
    }
}

/// A [`Kek`] as operators see it: `SWMKEY-1-` and base64 without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Kek);

impl UnlockKey {
    /// The text that an operator keeps. This is the secret itself.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", STANDARD_NO_PAD.encode(self.0.expose())))
    }

    /// The key.
    pub fn kek(&self) -> &Kek {
        &self.0
    }
}

impl From<Kek> for UnlockKey {
    fn from(kek: Kek) -> Self {
        Self(kek)
    }
}

impl FromStr for UnlockKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let body = text
            .strip_prefix(PREFIX)
            .ok_or(Error::UnlockKey("it must begin with SWMKEY-1-, as printed when the swarm was locked"))?;
        let bytes = STANDARD_NO_PAD
            .decode(body)
            .map_err(|_| Error::UnlockKey("after SWMKEY-1- it must be base64 without padding"))?;
        if bytes.is_empty() {
            return Err(Error::UnlockKey("nothing follows SWMKEY-1-"));
        }
        Ok(Self(Kek(SecretBytes::new(bytes))))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey([hidden])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTOR: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    #[test]
    fn the_known_key_reads_and_prints_as_the_original_does() {
        let bytes: Vec<u8> = (0..32).collect();
        let key: UnlockKey = VECTOR.parse().unwrap();
        assert_eq!(key.kek().expose(), bytes);
        assert_eq!(*UnlockKey::from(Kek::from_bytes(&bytes).unwrap()).expose(), VECTOR);
    }

    #[test]
    fn generated_keys_round_trip_and_differ() {
        let (a, b) = (Kek::generate(), Kek::generate());
        assert_ne!(a, b);
        let text = UnlockKey::from(a.clone()).expose();
        assert_eq!(text.len(), PREFIX.len() + 43);
        assert_eq!(*text.parse::<UnlockKey>().unwrap().kek(), a);
    }

    #[test]
    fn broken_keys_say_what_is_wrong() {
        for (text, why) in [
            ("SWMKEY-2-AAEC", "must begin with"),
            ("AAEC", "must begin with"),
            ("SWMKEY-1-AAE=", "without padding"),
            ("SWMKEY-1-AA*C", "base64"),
            ("SWMKEY-1-", "nothing follows"),
        ] {
            let error = text.parse::<UnlockKey>().unwrap_err().to_string();
            assert!(error.contains("invalid key string") && error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn keys_are_not_printed() {
        let key: UnlockKey = VECTOR.parse().unwrap();
        let printed = format!("{key:?} {:?}", key.kek());
        assert_eq!(printed, "UnlockKey([hidden]) Kek([hidden])");
    }
}
