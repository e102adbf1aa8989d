//! Identifiers of objects: 25 characters of base 36 from a random number of 17 bytes.

use rand::RngExt as _;

/// Length of an identifier in characters.
pub const LEN: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A new random identifier.
pub fn random() -> String {
    from_bytes(rand::rng().random())
}

/// The identifier of a 17-byte number (big-endian, its top bit taken as set): base 36 without the first digit.
pub fn from_bytes(mut bytes: [u8; 17]) -> String {
    bytes[0] |= 0x80;
    let mut digits = Vec::with_capacity(LEN + 2);
    let mut number = bytes.to_vec();
    while number.iter().any(|b| *b != 0) {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = remainder * 256 + u32::from(*byte);
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        digits.push(DIGITS[remainder as usize]);
    }
    digits.pop();
    digits.reverse();
    digits.truncate(LEN);
    digits.into_iter().map(char::from).collect()
}

/// Whether a text looks like an identifier of this kind.
pub fn is_valid(text: &str) -> bool {
    text.len() == LEN && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_25_digits_of_base_36_and_differ() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| random()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| is_valid(id)), "{ids:?}");
        assert!(is_valid(&from_bytes([0; 17])));
        assert!(is_valid(&from_bytes([0xff; 17])));
    }
}
