use super::*;
use crate::data::{Answer, Message, Prompt};
use proptest::prelude::*;
use std::path::PathBuf;

fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn rows(name: &str, text: &str) -> Vec<Row> {
    let (_dir, path) = write(name, text.as_bytes());
    read_rows(&path, OnBadRow::Error).unwrap().0
}

/// The row of one JSON line.
fn one(json: &str) -> Row {
    let mut rows = rows("data.jsonl", json);
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

/// The error of a file, its path cut to the name.
fn error(name: &str, bytes: &[u8]) -> String {
    let (dir, path) = write(name, bytes);
    let e = read_rows(&path, OnBadRow::Error).unwrap_err();
    assert_eq!(e.exit_code(), 2);
    let text = e.to_string();
    assert!(!text.contains('\n'));
    text.replace(&format!("{}/", dir.path().display()), "")
}

fn text(s: &str) -> Option<Prompt> {
    Some(Prompt::Text(s.into()))
}

fn chat(messages: &[(&str, &str)]) -> Option<Prompt> {
    Some(Prompt::Chat(messages.iter().map(|(r, c)| Message::new(*r, *c)).collect()))
}

/// The last text of each answer, with the space that joins it to the prompt.
fn answers(row: &Row) -> (Option<String>, Option<String>) {
    (row.chosen.as_ref().map(Answer::text), row.rejected.as_ref().map(Answer::text))
}

fn both(chosen: &str, rejected: &str) -> (Option<String>, Option<String>) {
    (Some(chosen.into()), Some(rejected.into()))
}

fn only(chosen: &str) -> (Option<String>, Option<String>) {
    (Some(chosen.into()), None)
}

#[test]
fn plain_preference_rows_get_one_joining_space() {
    let row = one(r#"{"prompt":"Human: hi Assistant:","chosen":"Yes","rejected":" No","id":7}"#);
    assert_eq!(row.prompt, text("Human: hi Assistant:"));
    assert_eq!(answers(&row), both(" Yes", " No"));
    let row = one(r#"{"prompt":"hi ","chosen":"a","rejected":"b"}"#);
    assert_eq!(answers(&row), both("a", "b"));
    let row = one(r#"{"prompt":"問い：","response":"答え","rejected":null}"#);
    assert_eq!(answers(&row), only("答え"));
}

#[test]
fn completion_is_verbatim_and_prompt_may_stand_alone() {
    let row = one(r#"{"prompt":"2+2=","completion":"4"}"#);
    assert_eq!((row.prompt.clone(), answers(&row)), (text("2+2="), only("4")));
    let row = one(r#"{"prompt":"2+2="}"#);
    assert_eq!((row.prompt.clone(), answers(&row)), (text("2+2="), (None, None)));
    assert_eq!(one(r#"{"text":"just text"}"#).text.as_deref(), Some("just text"));
}

const USER: &str = r#"{"role":"user","content":"q"}"#;

#[test]
fn conversations_in_all_their_forms() {
    let a = |s: &str| format!(r#"{{"role":"assistant","content":"{s}"}}"#);
    let (yes, no) = (a("yes"), a("no"));
    let expected = (chat(&[("user", "q")]), both("yes", "no"));
    for json in [
        // Prompt and answers apart; whole conversations; both; a prompt that is repeated as text.
        format!(r#"{{"prompt":[{USER}],"chosen":[{yes}],"rejected":[{no}]}}"#),
        format!(r#"{{"chosen":[{USER},{yes}],"rejected":[{USER},{no}]}}"#),
        format!(r#"{{"prompt":[{USER}],"chosen":[{USER},{yes}],"rejected":[{USER},{no}]}}"#),
        format!(r#"{{"prompt":"q","chosen":[{USER},{yes}],"rejected":[{USER},{no}]}}"#),
        format!(r#"{{"prompt":"q","chosen":[{yes}],"rejected":[{no}]}}"#),
        format!(r#"{{"prompt":[{USER}],"chosen":"yes","rejected":"no"}}"#),
    ] {
        let row = one(&json);
        assert_eq!((row.prompt.clone(), answers(&row)), expected, "{json}");
    }
    let turns = format!(r#"{USER},{yes},{USER}"#);
    let context = chat(&[("user", "q"), ("assistant", "yes"), ("user", "q")]);
    let row = one(&format!(r#"{{"messages":[{turns},{no}]}}"#));
    assert_eq!((row.prompt.clone(), answers(&row)), (context.clone(), only("no")));
    let row = one(&format!(r#"{{"messages":[{turns}]}}"#));
    assert_eq!((row.prompt.clone(), answers(&row)), (context.clone(), (None, None)));
    let row = one(&format!(r#"{{"prompt":[{USER}],"completion":[{yes},{USER},{no}]}}"#));
    assert_eq!((row.prompt.clone(), answers(&row)), (context, only("no")));
}

#[test]
fn transcripts_share_their_prompt() {
    let start = r"\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:";
    let row = one(&format!(r#"{{"chosen":"{start} Because","rejected":"{start} Beats me"}}"#));
    assert_eq!(row.prompt, text(&start.replace(r"\n", "\n")));
    assert_eq!(answers(&row), both(" Because", " Beats me"));
}

#[test]
fn lists_lines_bom_crlf_and_blank_lines() {
    let object = |p: &str| format!(r#"{{"prompt":"{p}"}}"#);
    let (a, b) = (object("a"), object("b"));
    let numbers = |rows: &[Row]| rows.iter().map(|r| r.row).collect::<Vec<_>>();
    let list = rows("data.json", &format!("\u{feff} [{a},\r\n {b}]\r\n"));
    assert_eq!((list[1].prompt.clone(), numbers(&list)), (text("b"), vec![1, 2]));
    for name in ["data.json", "data.jsonl", "data"] {
        let lines = rows(name, &format!("\u{feff}{a}\r\n\r\n  {b}"));
        assert_eq!((lines[1].prompt.clone(), numbers(&lines)), (text("b"), vec![1, 3]));
    }
    let paragraphs = rows("a.TXT", "\u{feff}\r\none\r\ntwo\r\n \r\n\r\nthree");
    let texts: Vec<_> = paragraphs.iter().map(|r| r.text.as_deref().unwrap()).collect();
    assert_eq!((texts, numbers(&paragraphs)), (vec!["one\ntwo", "three"], vec![2, 6]));
}

const EXPECTED: &str = "(expected prompt, chosen and rejected; prompt and completion; messages; \
    instruction and output; question and answer; or text)";
const HINT: &str = "; use --on-bad-row skip to leave such rows out";

/// Rows that cannot be used, and what is said of each.
fn bad_rows() -> Vec<(String, String)> {
    let share = "share no beginning that ends in \"Assistant:\"";
    [
        (r#"{"prompt":"p","rejected":"r"}"#, format!("key \"chosen\" is missing {EXPECTED}")),
        (r#"{"answer":"p"}"#, format!("key \"prompt\" is missing {EXPECTED}")),
        (r#"{"chosen":"p"}"#, format!("key \"prompt\" is missing {EXPECTED}")),
        (r#"[1]"#, format!("is a list, not an object {EXPECTED}")),
        (
            r#"{"prompt":3}"#,
            "key \"prompt\" is a number, not a string or a list of messages".into(),
        ),
        (
            r#"{"prompt":"p","chosen":true}"#,
            "key \"chosen\" is a boolean, not a string or a list of messages".into(),
        ),
        (
            r#"{"prompt":"p","chosen":"c","rejected":[]}"#,
            "key \"rejected\" is a list, not a string like \"chosen\"".into(),
        ),
        (r#"{"text":["a"]}"#, "key \"text\" is a list, not a string".into()),
        (r#"{"prompt":" \n"}"#, "key \"prompt\" is empty".into()),
        (r#"{"prompt":[]}"#, "key \"prompt\" is empty".into()),
        (r#"{"prompt":"p","chosen":""}"#, "key \"chosen\" is empty".into()),
        (
            r#"{"prompt":"p","chosen":"c","rejected":"c"}"#,
            "keys \"chosen\" and \"rejected\" hold the same answer".into(),
        ),
        (r#"{"prompt":"a\u0000b"}"#, "key \"prompt\" holds a NUL character".into()),
        (
            r#"{"prompt":[{"role":"user"}]}"#,
            "a message of \"prompt\" has no string \"content\"".into(),
        ),
        (
            r#"{"messages":[{"role":"user","content":""}]}"#,
            "the last message of \"messages\" is empty".into(),
        ),
        (
            r#"{"messages":[{"role":"assistant","content":"a"}]}"#,
            "key \"messages\" holds an answer but no prompt".into(),
        ),
        (
            r#"{"prompt":"p","chosen":[{"role":"user","content":"p"}]}"#,
            "an answer must end in a message of the role \"assistant\"".into(),
        ),
        (
            r#"{"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"x"}],
                "rejected":[{"role":"user","content":"b"},{"role":"assistant","content":"x"}]}"#,
            "\"chosen\" and \"rejected\" share no message to answer".into(),
        ),
        (
            r#"{"chosen":"one","rejected":"two"}"#,
            format!(
                "key \"prompt\" is missing {EXPECTED}, and \"chosen\" and \"rejected\" {share}"
            ),
        ),
        (
            r#"{"chosen":"\n\nHuman: a\n\nAssistant: b","rejected":"\n\nHuman: a\n\nAssistant: "}"#,
            "the answer in key \"rejected\" is empty".into(),
        ),
    ]
    .map(|(json, message)| (json.replace('\n', " "), message))
    .to_vec()
}

/// Rows that are not JSON, and what is said of each.
fn bad_json() -> Vec<(String, String)> {
    [
        (r#"{"prompt":}"#, "bad JSON at column 11: expected a value".into()),
        (
            r#"{"prompt":"é\ud83d!"}"#,
            "bad JSON at column 13: \\ud83d is half a character (a lone surrogate)".into(),
        ),
        (r#"{"prompt":"p",}"#, "bad JSON at column 14: a comma before `}`".into()),
        (
            r#"{'prompt':'p'}"#,
            "bad JSON at column 2: single quotes: this is Python's repr, not JSON".into(),
        ),
        (
            r#"{"prompt":"p"},"#,
            "bad JSON at column 15: a comma behind it: JSON lines have none, a JSON list begins \
             with `[`"
                .into(),
        ),
        (r#"{"prompt":"p"} x"#, "bad JSON at column 16: characters behind it".into()),
        (r#"{"prompt":"p"#, "bad JSON at column 13: a string does not end".into()),
    ]
    .map(|(json, message): (&str, String)| (json.to_owned(), message))
    .to_vec()
}

#[test]
fn every_bad_row_has_its_message() {
    let ask = r#"{"prompt":"p"}"#;
    for (json, message) in bad_rows().into_iter().chain(bad_json()) {
        let expected = format!("data.jsonl row 2: {message}{HINT}");
        assert_eq!(error("data.jsonl", format!("{ask}\n{json}\n").as_bytes()), expected);
    }
    // No advice to leave rows out where none would be left.
    let deep = format!("{{\"prompt\":{}", "[".repeat(100_000));
    let expected = "data.jsonl row 1: bad JSON at column 138: nested more than 128 deep";
    assert_eq!(error("data.jsonl", deep.as_bytes()), expected);
    assert_eq!(
        error("data.jsonl", b"{\"prompt\":\"a\xff\"}"),
        "data.jsonl row 1: bad JSON at column 13: byte 0xff is not UTF-8"
    );
    assert_eq!(
        error("data.jsonl", b"{}\n\n{\"text\": 1}"),
        format!(
            "data.jsonl row 1: key \"prompt\" is missing {EXPECTED}; no row of the file can be used"
        )
    );
    assert_eq!(
        error("a.txt", b"ok\n\nb\0d"),
        format!("a.txt row 3: key \"text\" holds a NUL character{HINT}")
    );
    assert_eq!(error("a.txt", b"caf\xe9"), "a.txt row 1: byte 4 (0xe9) is not UTF-8");
}

/// Rows of a file with their numbers, prompts and good answers.
fn told(name: &str, text: &str) -> Vec<(usize, String, String)> {
    let one = |row: Row| {
        let prompt = match row.prompt {
            Some(Prompt::Text(text)) => text,
            other => format!("{other:?}"),
        };
        (row.row, prompt, row.chosen.map(|a| a.text()).unwrap_or_default())
    };
    rows(name, text).into_iter().map(one).collect()
}

#[test]
fn objects_may_share_a_line_or_take_several() {
    let row = |n, p: &str, c: &str| (n, p.to_string(), c.to_string());
    let text = "{\"prompt\":\"a\"}{\"prompt\":\"b\"} {\"prompt\":\"c\"}\r\n\n{\n  \"prompt\": \
        \"d\",\n  \"completion\": \"e\"\n}\n{\"prompt\": \"f\", \"score\": NaN}\n";
    let want =
        [row(1, "a", ""), row(1, "b", ""), row(1, "c", ""), row(3, "d", "e"), row(7, "f", "")];
    assert_eq!(told("data.json", text), want);
    // A fault in an object over several lines is told of with its own line.
    let broken = "{\"prompt\": \"a\"}\n{\n  \"prompt\": \"b\",\n}\n{\"prompt\": \"c\"}\n";
    let expected = "data.jsonl row 2: bad JSON at line 3 column 16: a comma before `}`";
    assert_eq!(error("data.jsonl", broken.as_bytes()), format!("{expected}{HINT}"));
    let (_dir, path) = write("data.jsonl", broken.as_bytes());
    let (left, bad) = read_rows(&path, OnBadRow::Skip).unwrap();
    assert_eq!((left.len(), left[1].row, bad.count), (2, 5, 1));
    // A line that was cut short takes no other line with it.
    let cut = "{\"prompt\": \"a\nno\n{\"prompt\": \"b\"}\n";
    let (_dir, path) = write("data.jsonl", cut.as_bytes());
    let (left, bad) = read_rows(&path, OnBadRow::Skip).unwrap();
    assert_eq!((left.len(), left[0].row, bad.count), (1, 3, 2));
}

#[test]
fn one_object_may_hold_all_rows() {
    let row = |n, p: &str| (n, p.to_string(), String::new());
    let two = r#"[{"prompt": "a"}, {"prompt": "b"}]"#;
    for text in [
        format!(r#"{{"version": "1.1", "data": {two}}}"#),
        format!("{{\n  \"train\": {two}\n}}\n"),
        r#"{"features": [], "rows": [{"row_idx": 0, "row": {"prompt": "a"}},
            {"row_idx": 1, "row": {"prompt": "b"}}], "num_rows_total": 2}"#
            .to_string(),
    ] {
        assert_eq!(told("a.json", &text), [row(1, "a"), row(2, "b")], "{text}");
    }
    let (_dir, path) = write(
        "a.json",
        br#"{"rows": [{"row_idx": 0, "row": {"prompt": "a"}}], "num_rows_total": 9}"#,
    );
    let notes = read_rows(&path, OnBadRow::Error).unwrap().1.notes;
    assert_eq!(
        notes,
        [format!("{} holds 1 rows of 9: it is one page of the hub's viewer", path.display())]
    );
    // The viewer cuts long texts; rows are also saved without what wraps the page.
    let cut = r#"{"row_idx": 1, "row": {"prompt": "b", "chosen": "c"}, "#.to_owned()
        + r#""truncated_cells": ["prompt", "chosen"]}"#;
    let whole = r#"{"row_idx": 0, "row": {"prompt": "a"}, "truncated_cells": []}"#;
    let what = "the columns \"prompt\", \"chosen\" are cut short by the hub's viewer \
        (\"truncated_cells\"); download the data set's files instead";
    for text in [
        format!(r#"{{"features": [], "rows": [{whole}, {cut}]}}"#),
        format!("[{whole}, {cut}]"),
        format!("{whole}\n{cut}\n"),
    ] {
        assert_eq!(error("a.json", text.as_bytes()), format!("a.json row 2: {what}{HINT}"));
    }
    let by_rows = "is one object of columns; rows are one object each: with pandas, write it by \
        `.to_json(FILE, orient=\"records\", lines=True)`";
    for (text, want) in [
        (
            format!(r#"{{"train": {two}, "test": {two}}}"#),
            "is one object with the lists \"train\", \"test\"; save each as a file",
        ),
        (r#"{"prompt": ["a", "b"], "chosen": ["c", "d"]}"#.into(), by_rows),
        (r#"{"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c", "1": "d"}}"#.into(), by_rows),
    ] {
        assert_eq!(error("a.json", text.as_bytes()), format!("a.json {want}"));
    }
}

#[test]
fn keys_given_twice_are_named_once() {
    let lines = b"{\"prompt\":\"a\"}\n\
                  {\"prompt\":\"b\",\"prompt\":\"c\"}\n\
                  {\"prompt\":\"d\",\"x\":1,\"x\":2}";
    let (_dir, path) = write("a.jsonl", lines);
    let (rows, bad) = read_rows(&path, OnBadRow::Error).unwrap();
    assert_eq!(rows[1].prompt, text("c"));
    let first = format!("first: {} row 2, key \"prompt\"", path.display());
    let want = format!("2 rows hold a key twice, of which the last value counts, {first}");
    assert_eq!((bad.count, bad.notes), (0, vec![want]));
}

#[test]
fn tables_have_a_header() {
    let row = |n, p: &str, c: &str| (n, p.to_string(), c.to_string());
    let csv = "\u{feff}prompt,completion,score\r\nwhat is it?,it is this.,3\r\n\r\n\"a, \
        b\n\"\"c\"\"\",\"d\",\r\ne,,1";
    let want = [row(2, "what is it?", "it is this."), row(4, "a, b\n\"c\"", "d"), row(6, "e", "")];
    assert_eq!(told("a.csv", csv), want);
    assert_eq!(told("a.tsv", "prompt\tcompletion\na, b\tc\n"), [row(2, "a, b", "c")]);
    for (bytes, want) in [
        (&b"prompt,prompt\na,b"[..], "a.csv has two columns \"prompt\"".to_string()),
        (b"prompt,completion\na\n", "a.csv row 2: has 1 fields, the header has 2".into()),
        (b"prompt\na\n\"b", format!("a.csv row 3: a field in quotes does not end{HINT}")),
        (
            b"prompt\na\n\"b\"c\nd\n",
            format!("a.csv row 3: characters follow the closing quote of a field{HINT}"),
        ),
        (b"prompt\ncaf\xe9\n", "a.csv row 2: byte 4 (0xe9) is not UTF-8".into()),
        (b"where,answer\na,b\n", format!("a.csv row 2: key \"prompt\" is missing {EXPECTED}")),
    ] {
        assert_eq!(error("a.csv", bytes), want);
    }
}

#[test]
fn lists_name_their_rows_too() {
    assert_eq!(
        error("data.json", br#"[{"prompt":"a"},{"prompt":1}]"#),
        format!(
            "data.json row 2: key \"prompt\" is a number, not a string or a list of messages{HINT}"
        )
    );
    let whole = "a JSON list must be whole, JSON lines may leave rows out";
    assert_eq!(
        error("data.json", br#"[{"prompt":"a"},{"prompt"]"#),
        format!("data.json row 2: bad JSON at line 1 column 26: expected `:`; {whole}")
    );
    assert_eq!(
        error("data.json", br#"[{"prompt":"a"}] x"#),
        format!(
            "data.json row 2: bad JSON at line 1 column 18: characters behind the list; {whole}"
        )
    );
    assert_eq!(
        error("data.json", b"[\n{\"prompt\":\"a\"},\n]"),
        format!("data.json row 2: bad JSON at line 2 column 15: a comma before `]`; {whole}")
    );
    assert_eq!(
        error("data.json", b"[\n{\"prompt\":\"a\"},\n{\"prompt\":"),
        "data.json row 2: bad JSON at line 3 column 11: a value is missing at the end; the file is \
         cut short, write or download it again"
    );
}

#[test]
fn files_without_rows() {
    let missing = error_of_missing();
    assert_eq!(missing, "cannot open no/such.json: No such file or directory (os error 2)");
    for (name, bytes) in [("e.json", &b""[..]), ("e.json", b"[]"), ("e.txt", b"\n\n")] {
        assert_eq!(error(name, bytes), format!("{name} is empty: it holds no row of data"));
    }
    let (dir, path) = write("data.jsonl", b"{}\n{}\n");
    let e = read_rows(&path, OnBadRow::Skip).unwrap_err().to_string();
    let first = format!("data.jsonl row 1: key \"prompt\" is missing {EXPECTED}");
    let expected = format!("data.jsonl: no row is left, all 2 were bad; the first: {first}");
    assert_eq!(e.replace(&format!("{}/", dir.path().display()), ""), expected);
}

fn error_of_missing() -> String {
    read_rows(Path::new("no/such.json"), OnBadRow::Skip).unwrap_err().to_string()
}

#[test]
fn bad_rows_are_skipped_and_counted() {
    let mut data = String::from("{\"prompt\":\"good\"}\n");
    (0..9).for_each(|_| data.push_str("{\"prompt\":\"\"}\n"));
    let (_dir, path) = write("data.jsonl", data.as_bytes());
    let (rows, bad) = read_rows(&path, OnBadRow::Skip).unwrap();
    assert_eq!((rows.len(), bad.count, bad.first.len()), (1, 9, 5));
    assert_eq!(bad.first[0], format!("{} row 2: key \"prompt\" is empty", path.display()));
}

/// Bytes that often come near to a valid file.
fn file_bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::sample::select(vec![
            "[",
            "]",
            "{",
            "}",
            ",",
            ":",
            "\"prompt\":",
            "\"chosen\":",
            "\"rejected\":",
            "\"text\":",
            "\"messages\":",
            "\"a\"",
            "\"\\n\\nAssistant:b\"",
            "\"é\"",
            "null",
            "1",
            "\n",
            "\u{feff}",
            "{\"role\":\"user\",\"content\":\"x\"}",
            "{\"role\":\"assistant\",\"content\":\"y\"}",
        ])
        .prop_map(|s| s.as_bytes().to_vec()),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in file_bytes(), txt in any::<bool>()) {
        let (_dir, path) = write(if txt { "a.txt" } else { "a.json" }, &bytes);
        for on_bad in [OnBadRow::Error, OnBadRow::Skip] {
            if let Ok((rows, bad)) = read_rows(&path, on_bad) {
                prop_assert!(!rows.is_empty());
                prop_assert!(on_bad == OnBadRow::Skip || bad.count == 0);
            }
        }
    }

    /// Values of random shape under the known keys: rows are either refused or whole.
    #[test]
    fn random_values_never_panic(
        keys in prop::collection::vec(0usize..6, 1..5),
        picks in prop::collection::vec(0usize..8, 5),
    ) {
        let names = ["prompt", "chosen", "rejected", "completion", "messages", "text"];
        let a = r#"{"role":"assistant","content":"é"}"#;
        let values = [
            "\"é\"".to_owned(), "\"b c\"".to_owned(), format!("[{USER},{a}]"), format!("[{a}]"),
            format!("[{USER}]"), "null".into(), "\"\\n\\nHuman:é\\n\\nAssistant:é\"".into(),
            "\"\\n\\nHuman:é\\n\\nAssistant:è\"".into(),
        ];
        let fields: Vec<String> = keys.iter().zip(&picks)
            .map(|(&k, &v)| format!("\"{}\":{}", names[k], values[v])).collect();
        let (_dir, path) = write("a.jsonl", format!("{{{}}}", fields.join(",")).as_bytes());
        if let Ok((rows, _)) = read_rows(&path, OnBadRow::Error) {
            let row = &rows[0];
            prop_assert!(row.prompt.is_some() || row.text.is_some());
            prop_assert!(row.chosen.is_some() || row.rejected.is_none());
            prop_assert!(row.rejected.is_none() || row.chosen != row.rejected);
        }
    }
}
