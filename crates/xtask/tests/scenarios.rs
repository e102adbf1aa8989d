//! The pages that say which tests show which scenarios name tests that are there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Below the root, or below `crates/`.
fn find(root: &Path, file: &str) -> Option<PathBuf> {
    [root.join(file), root.join("crates").join(file)].into_iter().find(|path| path.is_file())
}

#[test]
fn every_test_that_a_scenario_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let (mut files, mut named, mut missing) = (BTreeMap::new(), 0, Vec::new());
    for page in std::fs::read_dir(root.join("docs")).unwrap() {
        let page = page.unwrap().path();
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("scenarios") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for (file, test) in text.split('`').filter_map(|word| word.split_once(".rs::")) {
            named += 1;
            // A module between the file and the test is a macro's.
            let test = test.rsplit("::").next().unwrap();
            let file = format!("{file}.rs");
            let source = files.entry(file.clone()).or_insert_with(|| {
                find(root, &file).map(|path| std::fs::read_to_string(path).unwrap()).unwrap_or_default()
            });
            if !source.contains(&format!("fn {test}(")) {
                missing.push(format!("{name}: {file}::{test}"));
            }
        }
    }
    assert!(named > 500, "{named}");
    assert!(missing.is_empty(), "{missing:#?}");
}
