//! How far a pull is, out of what an engine says of each layer.

use std::collections::BTreeMap;

use bollard::models::CreateImageInfo;

/// Most layers that are counted; an engine refuses images with more than 127.
const MOST: usize = 1024;
/// How much of the work on a layer its download is, in percent; the rest is its extraction.
const DOWNLOAD: u64 = 70;

/// The layers of an image that is being pulled.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    layers: BTreeMap<String, Layer>,
    /// The highest that was told: it never goes back.
    told: u8,
}

/// One of them.
#[derive(Debug, Clone, Copy, Default)]
struct Layer {
    /// In bytes, once it is known.
    size: Option<u64>,
    /// How much is done, in percent.
    done: u64,
}

impl Layers {
    /// Takes note of a message, and says how much is done of all layers that are known so far, in percent. A layer whose size is
    /// not known yet counts as much as one of the others.
    pub(crate) fn percent(&mut self, info: &CreateImageInfo) -> u8 {
        self.note(info);
        let known: Vec<u64> = self.layers.values().filter_map(|layer| layer.size).collect();
        let sum: u128 = known.iter().map(|size| u128::from(*size)).sum();
        let usual = sum.checked_div(known.len() as u128).unwrap_or(1).max(1);
        let (mut done, mut all) = (0_u128, 0_u128);
        for layer in self.layers.values() {
            let size = layer.size.map_or(usual, u128::from).max(1);
            done += size * u128::from(layer.done);
            all += size;
        }
        let percent = done.checked_div(all).unwrap_or(0);
        self.told = self.told.max(u8::try_from(percent).unwrap_or(100).min(100));
        self.told
    }

    fn note(&mut self, info: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&info.id, &info.status) else { return };
        let detail = info.progress_detail.as_ref();
        let number = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        let (current, total) =
            (number(detail.and_then(|d| d.current)).unwrap_or(0), number(detail.and_then(|d| d.total)));
        let share = |of: u64| {
            let part = |total| u128::from(of) * u128::from(current.min(total)) / u128::from(total);
            total.map_or(0, |total| part(total) as u64)
        };
        let (size, done) = match status.as_str() {
            "Pulling fs layer" | "Waiting" => (None, 0),
            "Downloading" => (total, share(DOWNLOAD)),
            "Verifying Checksum" | "Download complete" => (None, DOWNLOAD),
            "Extracting" => (total, DOWNLOAD + share(100 - DOWNLOAD)),
            "Pull complete" => (None, 100),
            // A layer that is there already, for which nothing is done; the image as a whole; words of a newer engine.
            _ => return,
        };
        if self.layers.len() >= MOST && !self.layers.contains_key(id) {
            return;
        }
        let layer = self.layers.entry(id.clone()).or_default();
        layer.size = layer.size.or(size);
        layer.done = layer.done.max(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    fn told(layers: &mut Layers, id: &str, status: &str, detail: Option<(i64, i64)>) -> u8 {
        let progress_detail =
            detail.map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) });
        layers.percent(&CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail,
            ..Default::default()
        })
    }

    #[test]
    fn layers_count_by_their_size_and_never_backwards() {
        let mut layers = Layers::default();
        for (id, status, detail, percent) in [
            ("1.36", "Pulling from library/busybox", None, 0),
            ("a", "Pulling fs layer", None, 0),
            ("b", "Pulling fs layer", None, 0),
            ("a", "Downloading", Some((50, 100)), 17),
            ("a", "Download complete", None, 35),
            ("b", "Downloading", Some((0, 300)), 35),
            ("b", "Downloading", Some((300, 300)), 70),
            ("a", "Extracting", Some((100, 100)), 77),
            ("a", "Pull complete", None, 77),
            ("b", "Downloading", Some((1, 300)), 77),
            ("b", "Extracting", Some((150, 300)), 88),
            ("b", "Pull complete", None, 100),
        ] {
            assert_eq!(told(&mut layers, id, status, detail), percent, "{id} {status} {detail:?}");
        }
    }

    #[test]
    fn what_is_there_already_is_no_work() {
        let mut layers = Layers::default();
        assert_eq!(told(&mut layers, "a", "Already exists", None), 0);
        told(&mut layers, "b", "Pulling fs layer", None);
        told(&mut layers, "b", "Downloading", Some((100, 1000)));
        assert_eq!(told(&mut layers, "c", "Already exists", None), 7);
    }

    #[test]
    fn numbers_that_make_no_sense_do_no_harm() {
        let mut layers = Layers::default();
        for detail in [(-5, -7), (5, 0), (i64::MAX, 3), (i64::MAX, i64::MAX)] {
            assert!(told(&mut layers, "a", "Downloading", Some(detail)) <= 100);
        }
        for n in 0..2 * MOST {
            told(&mut layers, &format!("l{n}"), "Downloading", Some((i64::MAX, i64::MAX)));
        }
        assert!(layers.layers.len() <= MOST);
    }
}
