use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(text: &str) -> Value {
    value(text.as_bytes(), 0).unwrap().value
}

#[test]
fn python_writes_what_json_does_not_know() {
    let text = r#"{"score": NaN, "low": -Infinity, "high": Infinity,
        "big": 123456789012345678901234567890, "huge": 1e999, "id": 18446744073709551615,
        "face": "\ud83d\ude00", "s": "\u00e9\/\t\n"}"#;
    let want = json!({"score": null, "low": null, "high": null, "big": 1.2345678901234568e29,
        "huge": null, "id": 18446744073709551615u64, "face": "😀", "s": "é/\t\n"});
    assert_eq!(read(text), want);
}

#[test]
fn the_last_of_equal_keys_counts_and_the_first_is_named() {
    let parsed = value(br#" {"a": 1, "b": {"c": 2, "c": 3}, "a": 4} rest"#, 0).unwrap();
    assert_eq!(parsed.value, json!({"a": 4, "b": {"c": 3}}));
    assert_eq!((parsed.end, parsed.repeated.as_deref()), (40, Some("c")));
}

#[test]
fn every_fault_is_where_it_is_said_to_be() {
    let cases: &[(&str, usize, &str, bool)] = &[
        ("", 0, "a value is missing at the end", true),
        ("{\"a\":1,}", 6, "a comma before `}`", false),
        ("[1,2,\n]", 4, "a comma before `]`", false),
        ("{'a': 1}", 1, "single quotes: this is Python's repr, not JSON", false),
        ("{\"a\": None}", 6, "a word of Python, not of JSON; write with json.dumps", false),
        ("{\"a\" 1}", 5, "expected `:`", false),
        ("{a: 1}", 1, "expected a key in double quotes", false),
        ("{\"a\": }", 6, "expected a value", false),
        ("{\"a\": 01}", 6, "a malformed number", false),
        ("{\"a\": 1 \"b\"", 8, "expected `,` or `}`", false),
        ("{\"a\": \"x", 8, "a string does not end", true),
        ("{\"a\": \"x\ny\"}", 8, "a line break within a string", false),
        ("{\"a\": \"x\u{1}\"}", 8, "a control character within a string", false),
        ("{\"a\": \"\\x41\"}", 7, "an unknown escape in a string", false),
        ("{\"a\": \"\\u12g4\"}", 7, "an escape without four hexadecimal digits", false),
        ("{\"a\": \"é \\ud83d\"}", 10, "\\ud83d is half a character (a lone surrogate)", false),
        ("[\"\\udc00\"]", 2, "\\udc00 is half a character (a lone surrogate)", false),
        ("[\"\\ud83d\\u0041\"]", 2, "\\ud83d is half a character (a lone surrogate)", false),
        ("{\"a\": tru", 9, "a value is cut short", true),
        ("{\"a\": [1", 8, "a list does not end", true),
        ("{\"a\": 1", 7, "an object does not end", true),
    ];
    for &(text, at, what, cut) in cases {
        let want = Fault { at, what: what.into(), cut };
        assert_eq!(value(text.as_bytes(), 0), Err(want), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(value(deep.as_bytes(), 0).unwrap_err().what, "nested more than 128 deep");
    assert_eq!(value(b"[\"a\xff\"]", 0).unwrap_err().what, "byte 0xff is not UTF-8");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e300f64..1e300).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn agrees_with_serde_json(want in any_json(), pretty in any::<bool>()) {
        let text = if pretty { format!("{want:#}") } else { want.to_string() };
        let parsed = value(text.as_bytes(), 0).unwrap();
        prop_assert_eq!(parsed, Parsed { value: want, end: text.len(), repeated: None });
    }

    #[test]
    fn whatever_serde_json_reads_is_read_alike(
        text in "[-0-9eE+.\\[\\]{}\",:\\\\ua-f tn]{0,24}"
    ) {
        let ours = value(text.as_bytes(), 0).ok().filter(|p| text[p.end..].trim().is_empty());
        if let Ok(theirs) = serde_json::from_str::<Value>(&text) {
            prop_assert_eq!(ours.map(|p| p.value), Some(theirs));
        } else if let Some(p) = ours {
            // What we read and the standard does not: numbers beyond f64.
            prop_assert!(text.contains(['e', 'E']), "{} as {}", text, p.value);
        }
    }
}
