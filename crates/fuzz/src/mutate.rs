//! Changes of seeds.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// No input is made longer than this, in bytes.
const LONGEST: usize = 64 * 1024;

/// Numbers at which arithmetic goes wrong, in every width that is used on a wire.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX - 1,
    u64::MAX,
];

/// Parts of texts that mean something to one of the targets.
const WORDS: [&str; 24] = [
    "{{",
    "}}",
    ".Task.ID",
    "index ",
    "printf ",
    "\"",
    "`",
    "-----BEGIN ",
    "-----END ",
    "\n",
    "==",
    "!=",
    "SWMTKN-1-",
    "SWMKEY-1-",
    "node.labels.",
    "{",
    "[",
    "null",
    "1e999",
    "18446744073709551615",
    "-1",
    ":",
    ",",
    "\u{10ffff}",
];

/// Draws inputs that resemble the seeds.
#[derive(Debug)]
pub struct Mutator<'a> {
    seeds: &'a [Vec<u8>],
    rng: StdRng,
}

impl<'a> Mutator<'a> {
    /// The same number draws the same inputs. There must be a seed.
    pub fn new(seeds: &'a [Vec<u8>], number: u64) -> Mutator<'a> {
        Mutator { seeds, rng: StdRng::seed_from_u64(number) }
    }

    fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end.max(1))
    }

    fn seed(&mut self) -> &'a [u8] {
        let at = self.below(self.seeds.len());
        self.seeds.get(at).map_or(&[], Vec::as_slice)
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut bytes = self.seed().to_vec();
        for _ in 0..1 + self.below(4) {
            self.change(&mut bytes);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let upto = at + self.below((bytes.len() - at).min(64) + 1);
        match self.below(11) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.rng.random(),
            2 => drop(bytes.drain(at..upto)),
            3 => bytes.truncate(at),
            4 => {
                let part = bytes[at..upto].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            // Parts of another seed.
            5 => {
                let other = self.seed();
                let from = self.below(other.len() + 1);
                let end = from + self.below(other.len() - from + 1);
                bytes.splice(at..upto, other[from..end].iter().copied());
            }
            6 => {
                let number = NUMBERS[self.below(NUMBERS.len())].to_be_bytes();
                let width = [1, 2, 4, 8][self.below(4)];
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, number[8 - width..].iter().copied());
            }
            7 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let mut varint = Vec::new();
                prost::encoding::encode_varint(number, &mut varint);
                // Instead of one that is there.
                let rest = bytes.get(at..).unwrap_or_default();
                let length = rest.iter().position(|byte| *byte < 0x80).map_or(0, |i| i + 1);
                bytes.splice(at..at + length, varint);
            }
            8 => {
                let word = WORDS[self.below(WORDS.len())];
                bytes.splice(at..at, word.bytes());
            }
            9 => {
                let count = self.below(24);
                let random: Vec<u8> = (0..count).map(|_| self.rng.random()).collect();
                bytes.splice(at..upto, random);
            }
            // Again and again, for what nests.
            10 if bytes.len() < 4096 => {
                let part = bytes[at..upto.min(at + 16)].to_vec();
                let times = self.below(256);
                bytes.splice(at..at, part.repeat(times));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_draws_the_same_inputs() {
        let seeds = [b"hello".to_vec(), vec![0; 100]];
        let draw = |number| {
            let mut mutator = Mutator::new(&seeds, number);
            (0..1000).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|input| input.len() <= LONGEST));
    }
}
