//! Join tokens: what lets a new node check the cluster's root, and the cluster tell a worker from a manager.
//!
//! `SWMTKN-1-<digest>-<secret>`, or `SWMTKN-2-<0|1>-<digest>-<secret>` where the flag says that the cluster
//! demands FIPS. Digest and secret are big-endian numbers in base 36, padded with zeros on the left.

use std::fmt;
use std::str::FromStr;

use rand::Rng as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const DIGEST_CHARACTERS: usize = 50;
const SECRET_CHARACTERS: usize = 25;

/// SHA-256 of the exact bytes of a root bundle.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootDigest([u8; 32]);

impl RootDigest {
    /// The digest of a bundle.
    pub fn of(bundle: &[u8]) -> Self {
        Self(Sha256::digest(bundle).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// `sha256:<hex>`, the form in the cluster object.
impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Nothing at all.
    #[error(
        "invalid join token: it is empty; a manager prints tokens with `swarmctl cluster inspect default`"
    )]
    Empty,
    /// Not the prefix of tokens.
    #[error("invalid join token: it must begin with SWMTKN-1- or SWMTKN-2-")]
    Prefix,
    /// An unlock key was given where a token belongs.
    #[error("invalid join token: this is an unlock key (SWMKEY-…), not a join token (SWMTKN-…)")]
    UnlockKey,
    /// A version that this build does not know.
    #[error(
        "invalid join token: its version is unknown; versions 1 (SWMTKN-1-…) and 2 (SWMTKN-2-…) are known"
    )]
    Version,
    /// Too few or too many parts.
    #[error(
        "invalid join token: it has {found} parts separated by '-', {expected} are right; was it cut off while copying?"
    )]
    Parts {
        /// Parts in the text.
        found: usize,
        /// Parts that its version has.
        expected: usize,
    },
    /// The flag of version 2.
    #[error("invalid join token: the part after SWMTKN-2- must be 0 or 1")]
    FipsFlag,
    /// A part of the wrong length.
    #[error(
        "invalid join token: its {part} has {found} characters, {expected} are right; was it cut off while copying?"
    )]
    Length {
        /// Which part.
        part: &'static str,
        /// Characters in the text.
        found: usize,
        /// Characters that the part has.
        expected: usize,
    },
    /// Something that is no digit of base 36.
    #[error("invalid join token: its {part} may only hold the digits 0-9 and the letters a-z")]
    Character {
        /// Which part.
        part: &'static str,
    },
    /// A number beyond what the part can stand for.
    #[error("invalid join token: its {part} is too large a number; was it altered?")]
    Overflow {
        /// Which part.
        part: &'static str,
    },
}

/// A parsed join token. Neither `Debug` nor `Display` show it: see [`JoinToken::expose`].
#[derive(Clone)]
pub struct JoinToken {
    text: Zeroizing<String>,
    digest: RootDigest,
    fips: bool,
}

impl JoinToken {
    /// A new token for a root, with a random secret. Clusters that demand FIPS get the second form.
    pub fn generate(root: RootDigest, fips: bool) -> Self {
        let mut secret = Zeroizing::new([0u8; 16]);
        rand::rng().fill_bytes(secret.as_mut());
        Self::build(root, fips, &secret)
    }

    fn build(digest: RootDigest, fips: bool, secret: &[u8; 16]) -> Self {
        let prefix = if fips { "SWMTKN-2-1" } else { "SWMTKN-1" };
        let text = Zeroizing::new(format!(
            "{prefix}-{}-{}",
            to_base36(&digest.0, DIGEST_CHARACTERS),
            Zeroizing::new(to_base36(secret, SECRET_CHARACTERS)).as_str()
        ));
        Self { text, digest, fips }
    }

    /// The whole token, as it is sent to the cluster and shown to operators.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The digest of the root that the cluster must present.
    pub fn root_digest(&self) -> RootDigest {
        self.digest
    }

    /// Whether the cluster demands FIPS of its nodes.
    pub fn fips(&self) -> bool {
        self.fips
    }

    /// Whether a presented text is this token; takes the same time wherever they differ.
    pub fn matches(&self, presented: &str) -> bool {
        tokens_equal(&self.text, presented)
    }
}

/// Compares two tokens in constant time. An empty text matches nothing, not even an empty one: a cluster without
/// tokens lets nobody in.
pub fn tokens_equal(expected: &str, presented: &str) -> bool {
    !expected.is_empty() && bool::from(expected.as_bytes().ct_eq(presented.as_bytes()))
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.starts_with("SWMKEY") {
            return Err(TokenError::UnlockKey);
        }
        let parts: Vec<&str> = text.split('-').collect();
        if parts[0] != "SWMTKN" {
            return Err(TokenError::Prefix);
        }
        let (fips, digest, secret) = match (parts.get(1).copied(), parts.len()) {
            (Some("1"), 4) => (false, parts[2], parts[3]),
            (Some("2"), 5) => match parts[2] {
                "0" => (false, parts[3], parts[4]),
                "1" => (true, parts[3], parts[4]),
                _ => return Err(TokenError::FipsFlag),
            },
            (Some("1"), found) => return Err(TokenError::Parts { found, expected: 4 }),
            (Some("2"), found) => return Err(TokenError::Parts { found, expected: 5 }),
            _ => return Err(TokenError::Version),
        };
        let digest = RootDigest(from_base36(digest, DIGEST_CHARACTERS, "digest")?);
        let _: Zeroizing<[u8; 16]> = Zeroizing::new(from_base36(secret, SECRET_CHARACTERS, "secret")?);
        Ok(Self { text: Zeroizing::new(text.to_owned()), digest, fips })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("root", &self.digest)
            .field("fips", &self.fips)
            .finish_non_exhaustive()
    }
}

fn to_base36(number: &[u8], width: usize) -> String {
    let mut number = Zeroizing::new(number.to_vec());
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in number.iter_mut() {
            let value = remainder * 256 + u32::from(*byte);
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        *digit = DIGITS[remainder as usize];
    }
    digits.into_iter().map(char::from).collect()
}

fn from_base36<const N: usize>(text: &str, width: usize, part: &'static str) -> Result<[u8; N], TokenError> {
    if text.len() != width {
        return Err(TokenError::Length { part, found: text.chars().count(), expected: width });
    }
    let mut number = [0u8; N];
    for character in text.bytes() {
        let digit = match character {
            b'0'..=b'9' => character - b'0',
            b'a'..=b'z' => character - b'a' + 10,
            _ => return Err(TokenError::Character { part }),
        };
        let mut carry = u32::from(digit);
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return Err(TokenError::Overflow { part });
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_and_print_as_the_known_vectors() {
        let check = |bytes: &[u8], width, text: &str| assert_eq!(to_base36(bytes, width), text);
        check(RootDigest::of(b"").as_bytes(), 50, "5oaq0bjhj6un82wg98mgigso5q7qlhc63je4gw7ivixqqhkd3p");
        check(RootDigest::of(b"abc").as_bytes(), 50, "4nb7oofka9ml8nasnokxxc1unhmtpr1wxsuwhpd9km3vt5as31");
        check(&(0..16).collect::<Vec<u8>>(), 25, "000avh9he7dy896m08s18udxr");
        check(&[0xff; 32], 50, "6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof");
        check(&[0xff; 16], 25, "f5lxx1zz5pnorynqglhzmsp33");
        assert_eq!(
            from_base36::<32>("6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof", 50, "digest").unwrap(),
            [0xff; 32]
        );
    }

    #[test]
    fn tokens_round_trip_in_both_forms() {
        let digest = RootDigest::of(b"root");
        for fips in [false, true] {
            let token = JoinToken::generate(digest, fips);
            assert!(token.expose().starts_with(if fips { "SWMTKN-2-1-" } else { "SWMTKN-1-" }));
            let parsed: JoinToken = token.expose().parse().unwrap();
            assert_eq!((parsed.root_digest(), parsed.fips()), (digest, fips));
            assert!(token.matches(parsed.expose()));
            assert!(!token.matches(JoinToken::generate(digest, fips).expose()));
        }
        let v2 = token_text().replacen("SWMTKN-1-", "SWMTKN-2-0-", 1);
        assert!(!v2.parse::<JoinToken>().unwrap().fips());
        assert!(format!("  {}\n", token_text()).parse::<JoinToken>().is_ok(), "pasted with white space");
    }

    fn token_text() -> String {
        JoinToken::build(RootDigest::of(b"root"), false, &[7; 16]).expose().to_owned()
    }

    #[test]
    fn garbled_tokens_say_what_is_wrong() {
        let good = token_text();
        let parts: Vec<&str> = good.split('-').collect();
        let (digest, secret) = (parts[2], parts[3]);
        let too_large = "z".repeat(50);
        let check = |text: &str, error: TokenError| {
            assert_eq!(text.parse::<JoinToken>().unwrap_err(), error, "{text}");
            assert!(error.to_string().starts_with("invalid join token: "), "{error}");
        };
        check("", TokenError::Empty);
        check("hello", TokenError::Prefix);
        check("swmtkn-1-a-b", TokenError::Prefix);
        check("SWMKEY-1-AAEC", TokenError::UnlockKey);
        check("SWMTKN", TokenError::Version);
        check(&format!("SWMTKN-0-{digest}-{secret}"), TokenError::Version);
        check(&format!("SWMTKN-3-{digest}-{secret}"), TokenError::Version);
        check(&format!("SWMTKN-1-{digest}"), TokenError::Parts { found: 3, expected: 4 });
        check(&format!("SWMTKN-2-{digest}-{secret}"), TokenError::Parts { found: 4, expected: 5 });
        check(&format!("SWMTKN-2-2-{digest}-{secret}"), TokenError::FipsFlag);
        check(&good[..good.len() - 1], TokenError::Length { part: "secret", found: 24, expected: 25 });
        check(
            &format!("SWMTKN-1-{}-{secret}", &digest[1..]),
            TokenError::Length { part: "digest", found: 49, expected: 50 },
        );
        check(&format!("SWMTKN-1-{}!-{secret}", &digest[1..]), TokenError::Character { part: "digest" });
        check(&format!("SWMTKN-1-{too_large}-{secret}"), TokenError::Overflow { part: "digest" });
        check(&good.to_uppercase(), TokenError::Character { part: "digest" });
    }

    #[test]
    fn an_empty_token_matches_nothing() {
        assert!(!tokens_equal("", ""));
        assert!(!tokens_equal("a", ""));
        assert!(tokens_equal("a", "a"));
    }

    #[test]
    fn tokens_are_not_printed() {
        let token = JoinToken::build(RootDigest::of(b"root"), false, &[7; 16]);
        let printed = format!("{token:?}");
        let secret = token.expose().rsplit('-').next().unwrap();
        assert!(!printed.contains(secret) && printed.contains("sha256:"), "{printed}");
    }
}
