//! Encryption of what goes to disk: a border that the data encryption key stays behind.

use bytes::Bytes;

/// Encrypts and decrypts records of the log and frames of snapshots with the node's data encryption key.
pub trait Sealer: Send + Sync + 'static {
    /// Encrypts and authenticates.
    fn seal(&self, plain: &[u8]) -> Result<Bytes, SealError>;
    /// Decrypts what [`Sealer::seal`] made; fails if it was made with another key, or changed since.
    fn open(&self, sealed: &[u8]) -> Result<Bytes, SealError>;
}

impl std::fmt::Debug for dyn Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

/// Why sealing or opening failed; says nothing of the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SealError(pub String);

impl Sealer for swarm_pki::Sealer {
    fn seal(&self, plain: &[u8]) -> Result<Bytes, SealError> {
        Ok(swarm_pki::Sealer::seal(self, plain))
    }

    fn open(&self, sealed: &[u8]) -> Result<Bytes, SealError> {
        swarm_pki::Sealer::open(self, sealed).map_err(|e| SealError(e.to_string()))
    }
}

/// No encryption at all; for tests and measurements.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainSealer;

impl Sealer for PlainSealer {
    fn seal(&self, plain: &[u8]) -> Result<Bytes, SealError> {
        Ok(Bytes::copy_from_slice(plain))
    }

    fn open(&self, sealed: &[u8]) -> Result<Bytes, SealError> {
        Ok(Bytes::copy_from_slice(sealed))
    }
}

/// Masks with one byte and adds a checksum. Hides nothing, but tells a wrong key and a changed record from a
/// right one; for tests.
#[derive(Debug, Clone, Copy)]
pub struct MaskSealer(pub u8);

impl Sealer for MaskSealer {
    fn seal(&self, plain: &[u8]) -> Result<Bytes, SealError> {
        let mut sealed: Vec<u8> = plain.iter().map(|b| b ^ self.0).collect();
        let mut check = crc32fast::Hasher::new_with_initial(u32::from(self.0));
        check.update(plain);
        sealed.extend_from_slice(&check.finalize().to_be_bytes());
        Ok(sealed.into())
    }

    fn open(&self, sealed: &[u8]) -> Result<Bytes, SealError> {
        let wrong = || SealError("wrong key or changed data".to_owned());
        let (masked, check) = sealed.split_last_chunk::<4>().ok_or_else(wrong)?;
        let plain: Vec<u8> = masked.iter().map(|b| b ^ self.0).collect();
        let mut expected = crc32fast::Hasher::new_with_initial(u32::from(self.0));
        expected.update(&plain);
        if expected.finalize().to_be_bytes() == *check { Ok(plain.into()) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_pki::Dek;

    #[test]
    fn each_sealer_opens_its_own_and_no_other() {
        let [one, two] = [Dek::generate(), Dek::generate()].map(|dek| swarm_pki::Sealer::new(&dek));
        let pairs: [(&dyn Sealer, &dyn Sealer); 2] = [(&one, &two), (&MaskSealer(1), &MaskSealer(2))];
        for (sealer, other) in pairs {
            let sealed = sealer.seal(b"record").unwrap();
            assert_eq!(sealer.open(&sealed).unwrap(), "record");
            assert!(other.open(&sealed).is_err());
            assert!(sealer.open(&sealed[1..]).is_err());
        }
    }
}
