//! One rule of the control API each.

use super::super::{Anomaly, check};
use super::*;

fn good(lines: &[Line]) {
    if let Err(error) = check(&history(lines)) {
        panic!("{error}");
    }
}

/// The history is refused, with a text that has these words.
fn bad(says: &str, lines: &[Line]) {
    match check(&history(lines)) {
        Err(Anomaly::NotLinearizable(text)) => assert!(text.contains(says), "{text}"),
        other => panic!("{other:?} instead of {says:?}"),
    }
}

#[test]
fn a_life_of_an_object() {
    good(&[
        (0, 1, create("a", "t0"), object("a", "i", 5, "t0")),
        (2, 3, create("a", "t1"), Answer::Exists),
        (4, 5, get("i"), object("a", "i", 5, "t0")),
        (6, 7, update("a", "i", 5, "t2"), object("a", "i", 6, "t2")),
        (8, 9, update("a", "i", 5, "t3"), Answer::OutOfSequence),
        (10, 11, Call::List, Answer::All(vec![seen("a", "i", 6, "t2")])),
        (12, 13, remove("i"), Answer::Removed),
        (14, 15, remove("i"), Answer::NotFound),
        (16, 17, get("i"), Answer::NotFound),
        (18, 19, update("a", "i", 6, "t4"), Answer::NotFound),
        (20, 21, Call::List, Answer::All(vec![])),
        (22, 23, create("a", "t5"), object("a", "j", 9, "t5")),
        (24, 25, get("i"), Answer::NotFound),
        (26, 27, get("j"), object("a", "j", 9, "t5")),
    ]);
}

#[test]
fn what_is_under_way_may_be_seen_or_not() {
    good(&[
        (0, 100, create("a", "t0"), object("a", "i", 5, "t0")),
        (1, 2, Call::List, Answer::All(vec![])),
        (3, 4, Call::List, Answer::All(vec![seen("a", "i", 5, "t0")])),
        (5, 6, create("a", "t1"), Answer::Exists),
        (7, 98, update("a", "i", 5, "t2"), object("a", "i", 8, "t2")),
        (8, 9, get("i"), object("a", "i", 5, "t0")),
        (10, 11, get("i"), object("a", "i", 8, "t2")),
    ]);
    bad(
        "no order",
        &[
            (0, 100, create("a", "t0"), object("a", "i", 5, "t0")),
            (3, 4, Call::List, Answer::All(vec![seen("a", "i", 5, "t0")])),
            (5, 6, get("i"), Answer::NotFound),
        ],
    );
}

#[test]
fn unknown_outcomes_may_be_either() {
    let begin = (0, 1, create("a", "t0"), object("a", "i", 5, "t0"));
    let unknown_update = (2, 3, update("a", "i", 5, "t1"), unknown());
    good(&[begin.clone(), unknown_update.clone(), (4, 5, get("i"), object("a", "i", 5, "t0"))]);
    good(&[begin.clone(), unknown_update.clone(), (4, 5, get("i"), object("a", "i", 7, "t1"))]);
    // Nobody has seen it, but somebody met it.
    good(&[
        begin.clone(),
        unknown_update.clone(),
        (4, 5, get("i"), object("a", "i", 5, "t0")),
        (6, 7, update("a", "i", 5, "t2"), Answer::OutOfSequence),
    ]);
    bad(
        "at any time",
        &[
            begin.clone(),
            unknown_update.clone(),
            (4, 5, get("i"), object("a", "i", 7, "t1")),
            (6, 7, get("i"), object("a", "i", 5, "t0")),
        ],
    );
    let unknown_remove = (2, 3, remove("i"), unknown());
    good(&[begin.clone(), unknown_remove.clone(), (4, 5, get("i"), Answer::NotFound)]);
    good(&[
        begin.clone(),
        unknown_remove.clone(),
        (4, 5, get("i"), object("a", "i", 5, "t0")),
        (6, 7, create("a", "t2"), object("a", "j", 8, "t2")),
    ]);
    bad(
        "no order",
        &[
            begin,
            unknown_remove,
            (4, 5, get("i"), Answer::NotFound),
            (6, 7, get("i"), { object("a", "i", 5, "t0") }),
        ],
    );
    good(&[(0, 1, create("a", "t0"), unknown()), (2, 3, create("a", "t1"), Answer::Exists)]);
    good(&[
        (0, 1, create("a", "t0"), unknown()),
        (2, 3, create("a", "t1"), object("a", "j", 4, "t1")),
        (4, 5, get("j"), object("a", "j", 4, "t1")),
    ]);
}

#[test]
fn a_refused_call_has_no_effect() {
    let refused = Answer::Refused("there is no leader".into());
    good(&[(0, 1, create("a", "t0"), refused.clone()), (2, 3, Call::List, Answer::All(vec![]))]);
    bad(
        "which no call wrote",
        &[(0, 1, create("a", "t0"), refused), (2, 3, Call::List, Answer::All(vec![seen("a", "i", 5, "t0")]))],
    );
}

#[test]
fn a_refusal_is_a_read() {
    let begin = (0, 1, create("a", "t0"), object("a", "i", 5, "t0"));
    bad("no order", &[begin.clone(), (2, 3, update("a", "i", 5, "t1"), Answer::OutOfSequence)]);
    bad("no order", &[begin.clone(), (2, 3, remove("i"), Answer::NotFound)]);
    bad(
        "no order",
        &[begin, (2, 3, remove("i"), Answer::Removed), (4, 5, create("a", "t2"), Answer::Exists)],
    );
}

#[test]
fn answers_must_be_those_of_the_call() {
    bad("no answer to the call", &[(0, 1, Call::List, Answer::Removed)]);
    bad(
        "no answer to the call",
        &[
            (0, 1, create("a", "t0"), object("a", "i", 5, "t0")),
            (2, 3, create("b", "t1"), object("a", "i", 5, "t0")),
        ],
    );
    bad(
        "not what this wrote",
        &[
            (0, 1, create("a", "t0"), object("a", "i", 5, "t0")),
            (2, 3, Call::List, Answer::All(vec![seen("b", "j", 5, "t0")])),
        ],
    );
    bad(
        "is that of a and of b",
        &[
            (0, 1, create("a", "t0"), object("a", "i", 5, "t0")),
            (2, 3, create("b", "t1"), object("b", "i", 6, "t1")),
        ],
    );
}

#[test]
fn a_list_is_as_of_one_moment() {
    let begin = [
        (0, 1, create("a", "a0"), object("a", "i", 5, "a0")),
        (2, 3, create("b", "b0"), object("b", "j", 6, "b0")),
        // Both are under way while the list is made.
        (4, 20, update("a", "i", 5, "a1"), object("a", "i", 7, "a1")),
        (5, 21, update("b", "j", 6, "b1"), object("b", "j", 8, "b1")),
    ];
    let list = |a: Seen, b: Seen| [begin.as_slice(), &[(6, 7, Call::List, Answer::All(vec![a, b]))]].concat();
    let (a0, a1) = (seen("a", "i", 5, "a0"), seen("a", "i", 7, "a1"));
    let (b0, b1) = (seen("b", "j", 6, "b0"), seen("b", "j", 8, "b1"));
    good(&list(a0.clone(), b0.clone()));
    good(&list(a1.clone(), b0));
    good(&list(a1, b1.clone()));
    bad("no moment has all", &list(a0, b1));
}

#[test]
fn versions_follow_real_time_across_objects() {
    bad(
        "had been seen before it began",
        &[
            (0, 1, create("a", "t0"), object("a", "i", 9, "t0")),
            (2, 3, create("b", "t1"), object("b", "j", 5, "t1")),
        ],
    );
}

#[test]
fn removals_of_different_objects_have_an_order() {
    // Each list is right for each name, and has no versions that could contradict.
    let (a, b) = (seen("a", "i", 5, "a0"), seen("b", "j", 6, "b0"));
    bad(
        "all objects together",
        &[
            (0, 1, create("a", "a0"), Answer::Object(a.clone())),
            (2, 3, create("b", "b0"), Answer::Object(b.clone())),
            (4, 20, remove("i"), Answer::Removed),
            (5, 21, remove("j"), Answer::Removed),
            (6, 12, Call::List, Answer::All(vec![a])),
            (7, 13, Call::List, Answer::All(vec![b])),
        ],
    );
}
