//! Keys that detach from a task: `ctrl-p,ctrl-q`.

/// A sequence of keys, and how far it has been typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    sequence: Vec<u8>,
    typed: usize,
}

/// Reads keys that commas separate: single characters, or `ctrl-` and a letter or one of `@ [ \ ] ^ _`.
pub(crate) fn parse(text: &str) -> Result<DetachKeys, String> {
    let sequence = text.split(',').map(key).collect::<Option<Vec<u8>>>();
    sequence.map(|sequence| DetachKeys { sequence, typed: 0 }).ok_or_else(|| {
        format!("{text:?} are no keys: expected characters, or ctrl- and a letter or one of @[\\]^_, such as ctrl-p,ctrl-q")
    })
}

fn key(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [key] if key.is_ascii() => Some(*key),
        [prefix @ .., key] if prefix.eq_ignore_ascii_case(b"ctrl-") => {
            let key = key.to_ascii_uppercase();
            (b'@'..=b'_').contains(&key).then(|| key - b'@')
        }
        _ => None,
    }
}

impl DetachKeys {
    /// What is to be passed on of the next bytes, and whether the whole sequence has been typed. Its beginning is held
    /// back until it is clear what comes of it.
    pub(crate) fn filter(&mut self, data: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(data.len());
        for byte in data {
            if *byte == self.sequence[self.typed] {
                self.typed += 1;
                if self.typed == self.sequence.len() {
                    self.typed = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.sequence[..self.typed]);
            self.typed = 0;
            if *byte == self.sequence[0] {
                self.typed = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        for (text, sequence) in [
            ("ctrl-p,ctrl-q", &[16, 17][..]),
            ("CTRL-P", &[16]),
            ("a,ctrl-a,ctrl-@,ctrl-_", &[b'a', 1, 0, 31]),
            ("ctrl-\\", &[28]),
        ] {
            assert_eq!(parse(text).unwrap().sequence, sequence, "{text}");
        }
        for text in ["", "a,", "ctrl-", "ctrl-1", "ab", "é", "ctrl-é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_only_begins_like_the_keys_is_passed_on() {
        let mut keys = parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"a\x10b"), (b"a\x10b".to_vec(), false));
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        assert_eq!(keys.filter(b"x"), (b"x".to_vec(), false));
    }
}
