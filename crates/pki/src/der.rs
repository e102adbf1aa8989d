//! The few bits of DER that no library at hand does: wrapping keys, and re-issuing a certificate as it is.

use zeroize::Zeroizing;

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const NULL: u8 = 0x05;
pub(crate) const OID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
/// `[0]` and `[1]`, constructed.
pub(crate) const CONTEXT_0: u8 = 0xa0;
pub(crate) const CONTEXT_1: u8 = 0xa1;

/// One element: tag, contents, and all its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) value: &'a [u8],
    pub(crate) raw: &'a [u8],
}

/// The elements of a sequence's contents; `None` when they are no DER.
pub(crate) fn elements(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let (element, rest) = next(bytes)?;
        elements.push(element);
        bytes = rest;
    }
    Some(elements)
}

/// The contents of the single sequence that some bytes are.
pub(crate) fn sequence(bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    match next(bytes)? {
        (Element { tag: SEQUENCE, value, .. }, []) => elements(value),
        _ => None,
    }
}

fn next(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (digits.iter().fold(0usize, |n, b| (n << 8) | usize::from(*b)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((Element { tag, value, raw: &bytes[..bytes.len() - rest.len()] }, rest))
}

/// One element around the concatenation of parts.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 6));
    out.push(tag);
    match length {
        0..0x80 => out.push(length as u8),
        _ => {
            let digits = (length as u32).to_be_bytes();
            let skipped = digits.iter().take_while(|b| **b == 0).count();
            out.push(0x80 + (4 - skipped) as u8);
            out.extend_from_slice(&digits[skipped..]);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_every_length_round_trip() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536, 70_000] {
            let value = vec![7; length];
            let encoded = element(SEQUENCE, &[&element(OCTET_STRING, &[&value]), &element(NULL, &[])]);
            let parsed = sequence(&encoded).unwrap();
            assert_eq!(parsed.len(), 2);
            assert_eq!((parsed[0].tag, parsed[0].value), (OCTET_STRING, &value[..]));
        }
    }

    #[test]
    fn cut_bytes_are_no_der() {
        let encoded = element(SEQUENCE, &[&element(OCTET_STRING, &[&[1; 200]])]);
        assert!((0..encoded.len()).all(|at| sequence(&encoded[..at]).is_none()));
    }
}
