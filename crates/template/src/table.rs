//! Every function of the language, with the results that Go's text/template gives: they were had from Docker's command line,
//! `docker context inspect --format TEMPLATE`.

use std::collections::BTreeMap;

use swarm_api::v1::{Annotations, Task};

use super::Context;

fn context() -> Context {
    let labels = BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
    let annotations = Annotations { name: "web".into(), labels, ..Default::default() };
    let task =
        Task { id: "t1".into(), slot: 3, service_annotations: annotations.into(), ..Default::default() };
    Context::new(&task, None)
}

#[track_caller]
fn table(rows: &[(&str, &str)]) {
    for (template, expected) in rows {
        assert_eq!(context().expand(template).as_deref(), Ok(*expected), "{template}");
    }
}

#[track_caller]
fn refused(rows: &[(&str, &str)]) {
    for (template, part) in rows {
        let error = context().expand(template).expect_err(template).to_string();
        assert!(error.contains(part), "{template}: {error}");
    }
}

#[test]
fn numbers() {
    table(&[
        (
            "{{1.0}} {{1.5}} {{1e3}} {{123456789.0}} {{1e20}} {{1e21}}",
            "1 1.5 1000 1.23456789e+08 1e+20 1e+21",
        ),
        ("{{0.00001}} {{1e-3}} {{.5}} {{1e6}} {{123456.0}}", "1e-05 0.001 0.5 1e+06 123456"),
        ("{{0x1F}} {{0b11}} {{0o17}} {{017}} {{1_000}} {{-5}} {{+5}} {{'a'}}", "31 3 15 15 1000 -5 5 97"),
        ("{{if 0.0}}yes{{else}}no{{end}}{{if 0.1}}yes{{end}}", "noyes"),
        ("{{-9223372036854775808}}", "-9223372036854775808"),
    ]);
    for bad in ["1i", "1.2.3", "0x", "12ab", "1e", "--1", "1e999", "9223372036854775808", "018"] {
        refused(&[(&format!("{{{{{bad}}}}}"), "bad number")]);
    }
}

#[test]
fn print_and_println() {
    table(&[
        ("{{print 1 2}}|{{print 1 \"a\" 2}}|{{print \"a\" \"b\"}}", "1 2|1a2|ab"),
        ("{{print 1 2 \"a\" 3 4}}|{{print true false 1.5}}|{{print}}|", "1 2a3 4|true false 1.5||"),
        ("{{println 1 \"a\" 2}}|{{println}}|{{println \"a\" \"b\"}}", "1 a 2\n|\n|a b\n"),
        ("{{print .Service.Labels 1}}", "map[a:1 b:2] 1"),
    ]);
}

#[test]
fn html_js_and_urlquery() {
    table(&[
        (
            "{{html 1 2 \"<\" \">\" true}} {{js 1 2 \"x\"}} {{urlquery 1 2 \"a b\"}}",
            "1 2&lt;&gt;true 1 2x 1+2a+b",
        ),
        (
            r#"{{js "it's <b> & a=\"1\" \\ ä \n"}} {{html "<a href='x'>&\""}}"#,
            r#"it\'s \u003Cb\u003E \u0026 a\u003D\"1\" \\ ä \u000A &lt;a href=&#39;x&#39;&gt;&amp;&#34;"#,
        ),
    ]);
}

#[test]
fn comparisons_and_logic() {
    table(&[
        ("{{eq \"a\" \"b\" \"a\"}} {{eq 1.5 1.5}} {{eq true true}} {{ne 1 2}}", "true true true true"),
        (
            "{{lt 1.5 2.5}} {{lt \"a\" \"b\"}} {{le 1 1}} {{ge 1 2}} {{gt 2 1}} {{ge \"b\" \"a\"}}",
            "true true true false true true",
        ),
        ("{{not 0.0}} {{not 1}} {{and 1 \"\" 2}} {{or 0 \"\" 3}}", "true false  3"),
    ]);
    refused(&[
        ("{{eq 1 1.0}}", "eq: incompatible types for comparison"),
        ("{{eq 1 \"1\"}}", "eq: incompatible types for comparison"),
        ("{{eq .Task.Slot 3}}", "eq: incompatible types for comparison"),
        ("{{ne 1 \"a\"}}", "ne: incompatible types for comparison"),
        ("{{lt 1 1.5}}", "lt: incompatible types for comparison"),
        ("{{lt true false}}", "lt: invalid type for comparison"),
        ("{{eq .Service.Labels 1}}", "eq: maps and lists can't be compared"),
    ]);
}

#[test]
fn len_index_slice_join_and_call() {
    table(&[
        ("{{len \"abc\"}} {{len .Service.Labels}} {{index \"abc\" 1}}", "3 2 98"),
        ("{{slice \"abcdef\" 1 3}} {{slice \"abc\" 1}} {{slice \"abc\"}}", "bc bc abc"),
        ("{{index .Service.Labels \"a\"}}{{index .Service.Labels \"none\"}}", "1"),
        ("{{join \"-\" \"a\" \"b\"}}", "a-b"),
    ]);
    refused(&[
        ("{{index \"abc\" 5}}", "out of range"),
        ("{{slice \"abc\" 2 1}}", "out of range"),
        ("{{len 1}}", "len"),
        ("{{call 1}}", "call: 1 is no function"),
        ("{{printf 5}}", "printf: wrong number or kind"),
    ]);
}

#[test]
fn printf_verbs() {
    table(&[
        (
            r#"{{printf "%05s|%-5s|%5s|%.2s|%.12s|%5.1s|" "ab" "ab" "ab" "äbc" "abc" "xyz"}}"#,
            "000ab|ab   |   ab|äb|abc|    x|",
        ),
        (
            r#"{{printf "%05d|%-5d|%+d|% d|%x|%X|%#x|%.3d|%08.3d|%o|%b|%c|%U|%O" 42 42 42 42 255 255 255 7 7 8 5 65 65 8}}"#,
            "00042|42   |+42| 42|ff|FF|0xff|007|     007|10|101|A|U+0041|0o10",
        ),
        (
            r#"{{printf "%f|%.2f|%8.3f|%08.3f|%-8.1f|%e|%g|%.3g|%G|%+f" 1.5 1.5 1.5 -1.5 1.5 1500.0 1.5 1234.5678 1e-7 2.5}}"#,
            "1.500000|1.50|   1.500|-001.500|1.5     |1.500000e+03|1.5|1.23e+03|1E-07|+2.500000",
        ),
        (
            r#"{{printf "%g %g %v %+.2e" 1234567.0 123456.0 1e6 12345.678}}"#,
            "1.234567e+06 123456 1e+06 +1.23e+04",
        ),
        (r#"{{printf "%q %#q %q" "a\"b\n\u00e4" "raw" "\x01\u200b"}}"#, r#""a\"b\nä" `raw` "\x01\u200b""#),
        (r#"{{printf "%x %X % x %#x %.1x" "hi" "hi" "hi" "hi" "hi"}}"#, "6869 6869 68 69 0x6869 68"),
        (r#"{{printf "%6.2v|%v|%5v|%-5v|%05v" "abc" true true true 7}}"#, "    ab|true| true|true |00007"),
        (r#"{{printf "%T %T %T %T" 1 "a" 1.5 true}}"#, "int string float64 bool"),
        (r#"{{printf "%5t|%t" true false}}"#, " true|false"),
        (r#"{{printf "%05.1f|%5d|%-5d|%x" -2.25 -3 -3 -255}}"#, "-02.2|   -3|-3   |-ff"),
        (r#"{{printf "%.0d|%.0f|%.0s|" 0 2.5 "abc"}}"#, "|2||"),
        (r#"{{printf "%#v %#v %v" "a" 1 nil}}"#, "\"a\" 1 <nil>"),
        (
            r#"{{printf "%[2]s %[1]s" "a" "b"}} {{printf "%*d" 5 42}} {{printf "%-*d|" 5 42}}"#,
            "b a    42 42   |",
        ),
        (
            r#"{{printf "%d%%" 5}} {{printf "%s %v" .Service.Labels .Service.Labels}}"#,
            "5% map[a:1 b:2] map[a:1 b:2]",
        ),
    ]);
}

#[test]
fn printf_says_what_does_not_fit() {
    table(&[
        (r#"{{printf "%d %s %q %t" "a" 5 5 "x"}}"#, r"%!d(string=a) %!s(int=5) '\x05' %!t(string=x)"),
        (
            r#"{{printf "%s" 1}} {{printf "a" 1 "x" true}}"#,
            "%!s(int=1) a%!(EXTRA int=1, string=x, bool=true)",
        ),
        (
            r#"{{printf "%s"}} {{printf "%"}} {{printf "%!"}} {{printf "%[5]d" 1}}"#,
            "%!s(MISSING) %!(NOVERB) %!!(MISSING) %!d(BADINDEX)",
        ),
        (
            r#"{{printf "%s" nil}} {{printf "%c|%q|%d" "a" true 1.5}}"#,
            "%!s(<nil>) %!c(string=a)|%!q(bool=true)|%!d(float64=1.5)",
        ),
    ]);
}

#[test]
fn what_the_language_has_beyond_this_is_refused_by_name() {
    for word in ["define \"x\"", "template \"x\"", "block \"x\" .", "break", "continue"] {
        let name = word.split(' ').next().unwrap_or_default();
        refused(&[(&format!("{{{{{word}}}}}"), &format!("{{{{{name}}}}} is not supported"))]);
    }
}
