//! The data-encryption keys in the headers of a node's key file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use swarm_api::v1::maybe_encrypted_record::Algorithm;

use crate::seal::{plain_data, plain_record};
use crate::{Dek, Error, Kek, Result, SealError, Sealer};

pub(crate) const CURRENT: &str = "raft-dek";
pub(crate) const PENDING: &str = "raft-dek-pending";
pub(crate) const NEEDS_ROTATION: &str = "raft-dek-needs-rotation";

/// Which keys the raft log and snapshots of this manager are sealed with, and whether that is about to change.
/// Workers have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DekState {
    /// What everything on disk can be opened with, unless a change is under way.
    pub current: Option<Dek>,
    /// What new records are sealed with while a change is under way.
    pub pending: Option<Dek>,
    /// The current key once lay in the clear: it must be changed.
    pub needs_rotation: bool,
}

impl DekState {
    /// What to seal and open raft data with: the pending key first, where there is one. `None` without any key.
    pub fn sealer(&self) -> Option<Sealer> {
        match (&self.pending, &self.current) {
            (Some(pending), Some(current)) => {
                Some(Sealer::with_older(pending, std::slice::from_ref(current)))
            }
            (_, Some(current)) => Some(Sealer::new(current)),
            (_, None) => None,
        }
    }

    /// The headers that carry this state, encrypted when there is a key to encrypt with.
    pub(crate) fn to_headers(&self, kek: Option<&Kek>) -> Result<Vec<(String, String)>> {
        let Some(current) = &self.current else {
            return if self.pending.is_some() { Err(Error::PendingWithoutCurrent) } else { Ok(Vec::new()) };
        };
        let encode = |dek: &Dek| {
            STANDARD.encode(match kek {
                None => plain_record(dek.expose()),
                Some(kek) => Sealer::secretbox(kek.expose()).seal(dek.expose()).to_vec(),
            })
        };
        let mut headers = vec![(CURRENT.to_owned(), encode(current))];
        headers.extend(self.pending.as_ref().map(|pending| (PENDING.to_owned(), encode(pending))));
        if self.needs_rotation {
            headers.push((NEEDS_ROTATION.to_owned(), "true".to_owned()));
        }
        Ok(headers)
    }

    /// Reads the headers of a key file.
    ///
    /// # Errors
    /// [`Error::Locked`] when a key is encrypted and `kek` is not what it is encrypted with.
    pub(crate) fn from_headers<'a>(
        header: impl Fn(&str) -> Option<&'a str>,
        kek: Option<&Kek>,
    ) -> Result<Self> {
        let decode = |name: &str| header(name).map(|text| decode(text, kek)).transpose();
        let state = Self {
            current: decode(CURRENT)?,
            pending: decode(PENDING)?,
            needs_rotation: header(NEEDS_ROTATION).is_some(),
        };
        match (&state.current, &state.pending) {
            (None, Some(_)) => Err(Error::PendingWithoutCurrent),
            _ => Ok(state),
        }
    }
}

fn decode(text: &str, kek: Option<&Kek>) -> Result<Dek> {
    let damaged = |why: &dyn std::fmt::Display| Error::Headers(why.to_string());
    let record = STANDARD.decode(text).map_err(|_| damaged(&"not base64"))?;
    if let Some(data) = plain_data(&record).map_err(|e| damaged(&e))? {
        return Ok(Dek::from_bytes(data));
    }
    let kek = kek.ok_or(Error::Locked)?;
    match Sealer::secretbox(kek.expose()).open(&record) {
        Ok(dek) => Ok(Dek::from_bytes(&dek)),
        Err(SealError::Algorithm(number)) if number != Algorithm::None as i32 => {
            Err(damaged(&SealError::Algorithm(number)))
        }
        Err(_) => Err(Error::Locked),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn dek(start: u8) -> Dek {
        Dek::from_bytes(&(start..start + 32).collect::<Vec<u8>>())
    }

    fn round_trip(state: &DekState, write: Option<&Kek>, read: Option<&Kek>) -> Result<DekState> {
        let headers: BTreeMap<_, _> = state.to_headers(write)?.into_iter().collect();
        DekState::from_headers(|name| headers.get(name).map(String::as_str), read)
    }

    #[test]
    fn the_known_dek_is_written_as_the_original_does() {
        let state = DekState { current: Some(dek(0)), ..DekState::default() };
        let headers = state.to_headers(None).unwrap();
        let vector = "EiAAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw==";
        assert_eq!(headers, [("raft-dek".to_owned(), vector.to_owned())]);
    }

    #[test]
    fn every_state_round_trips_with_and_without_a_kek() {
        let kek = Kek::generate();
        for pending in [None, Some(dek(100))] {
            for needs_rotation in [false, true] {
                let state = DekState { current: Some(dek(0)), pending: pending.clone(), needs_rotation };
                assert_eq!(round_trip(&state, None, None).unwrap(), state);
                assert_eq!(round_trip(&state, None, Some(&kek)).unwrap(), state, "plain ones need no key");
                assert_eq!(round_trip(&state, Some(&kek), Some(&kek)).unwrap(), state);
                assert!(matches!(round_trip(&state, Some(&kek), None), Err(Error::Locked)));
                assert!(matches!(round_trip(&state, Some(&kek), Some(&Kek::generate())), Err(Error::Locked)));
            }
        }
        assert_eq!(round_trip(&DekState::default(), None, None).unwrap(), DekState::default());
    }

    #[test]
    fn a_pending_key_alone_is_refused_both_ways() {
        let state = DekState { pending: Some(dek(0)), ..DekState::default() };
        assert!(matches!(state.to_headers(None), Err(Error::PendingWithoutCurrent)));
        let text = STANDARD.encode(plain_record(dek(0).expose()));
        let read = DekState::from_headers(|name| (name == PENDING).then_some(text.as_str()), None);
        assert!(matches!(read, Err(Error::PendingWithoutCurrent)));
    }

    #[test]
    fn damaged_headers_are_told_from_locked_ones() {
        let read = DekState::from_headers(|name| (name == CURRENT).then_some("!"), None);
        assert!(read.unwrap_err().to_string().starts_with("unable to read TLS key headers"));
    }

    #[test]
    fn a_sealer_uses_the_pending_key_and_still_opens_with_the_current_one() {
        let state = DekState { current: Some(dek(0)), pending: Some(dek(100)), needs_rotation: false };
        let sealer = state.sealer().unwrap();
        assert!(sealer.open(&Sealer::new(&dek(0)).seal(b"old")).is_ok());
        assert!(Sealer::new(&dek(100)).open(&sealer.seal(b"new")).is_ok());
        assert!(DekState::default().sealer().is_none());
    }
}
