use super::*;
use crate::base::Rng;
use crate::data::chat::{ChatFormat, Talk};
use crate::data::{Limits, OnLongPrompt, pair_example, prompt_example, sft_example};
use serde_json::{Value, json};

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}\
                      <|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn tokenizer() -> Tokenizer {
    let texts = ["some words to read and some more words, to be read again"; 4];
    let special = ["<|end|>", "<|im_start|>", "<|im_end|>"];
    Tokenizer::byte_level_bpe(texts.into_iter(), 400, &special, Some(CHATML)).unwrap()
}

/// Words of unequal length, so many bytes of them.
fn words(seed: u64, bytes: usize) -> String {
    let mut rng = Rng::new(seed, 0);
    let mut text = String::new();
    while text.len() < bytes {
        let word = ["some ", "words, ", "read", " é", "again\n", "好 ", "to be "];
        text.push_str(word[rng.below(7) as usize]);
    }
    text
}

/// Text that is far longer than 50 tokens.
fn long(seed: u64) -> String {
    words(seed, 200_000)
}

fn limits(on_long_prompt: OnLongPrompt) -> Limits {
    Limits {
        max_prompt_len: 30,
        max_seq_len: 50,
        on_long_prompt,
        chat: ChatFormat::Template,
        allow_special: false,
        all_turns: false,
    }
}

fn text_row(prompt: &str, chosen: &str, rejected: &str) -> Row {
    let answer = |text: &str| Some(Answer::Text { joint: " ", text: text.into() });
    let (chosen, rejected) = (answer(chosen), answer(rejected));
    Row { prompt: Some(Prompt::Text(prompt.into())), chosen, rejected, ..Row::blank() }
}

#[test]
fn tokens_near_ends_and_places_are_those_of_the_whole() {
    let tok = tokenizer();
    let text = format!("{}<|im_start|>{}", long(1), long(2));
    for literal in [vec![], vec![0..text.len()], vec![150_000..230_000]] {
        let place = text.find("<|im_start|>").unwrap();
        let whole = tok.encode_guarded(&text, &literal).unwrap();
        let near = encode(&tok, &text, &literal, &[place], 50).unwrap();
        assert_eq!(near.gaps.len(), 2);
        assert!(near.ids.len() < whole.ids.len() / 4, "{} tokens", near.ids.len());
        let at = |offsets: &[Range<usize>], place| {
            offsets.iter().position(|o| o.start >= place).unwrap_or(offsets.len())
        };
        for place in [0, place, text.len()] {
            let [a, b] = [at(&whole.offsets, place), at(&near.offsets, place)];
            let around = |n: usize, all: usize| n.saturating_sub(50)..(n + 50).min(all);
            let (a, b) = (around(a, whole.ids.len()), around(b, near.ids.len()));
            assert_eq!(whole.ids[a.clone()], near.ids[b.clone()]);
            assert_eq!(whole.offsets[a], near.offsets[b]);
        }
        for gap in &near.gaps {
            assert!(near.offsets.iter().all(|o| o.end <= gap.start || gap.end <= o.start));
        }
    }
    // What may be a sequence is encoded whole, however long.
    let near = encode(&tok, &text, &[], &[], 10_000).unwrap();
    assert_eq!(near.ids, tok.encode_guarded(&text, &[]).unwrap().ids);
}

#[test]
fn where_bytes_make_no_tokens_more_of_them_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    tokenizer().save(&crate::formats::OutDir::open(dir.path()).unwrap()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    whole["normalizer"] = json!({"type": "Replace", "pattern": {"String": "x"}, "content": ""});
    std::fs::write(&path, whole.to_string()).unwrap();
    let tok = Tokenizer::load(dir.path()).unwrap();
    for (text, parts) in
        [("x".repeat(300_000) + "words", 1), (format!("{0}words{0}", "x".repeat(99_999)), 1)]
    {
        let near = encode(&tok, &text, &[], &[], 9).unwrap();
        assert_eq!((near.ids, near.gaps.len() + 1), (tok.encode("words", false).unwrap(), parts));
        assert_eq!(head(&tok, &text, 9).unwrap(), text);
        assert_eq!(tail(&tok, &text, 9).unwrap(), text);
    }
}

#[test]
fn a_long_text_in_pieces_has_the_tokens_of_the_whole() {
    let tok = tokenizer();
    let special = format!("{}<|im_start|>{}", words(1, 3000), words(2, 5000));
    for text in [words(3, 9000), special, "好".repeat(3000)] {
        for allow_special in [false, true] {
            let whole = tok.encode(&text, allow_special).unwrap();
            for (piece, around) in [(1000, 100), (777, 50), (3000, 300), (100, 0)] {
                let found = in_pieces(&tok, &text, allow_special, piece, around).unwrap();
                assert!(around == 0 || found == whole, "{piece} {around}");
                assert_eq!(tok.decode(&found, false).unwrap(), text);
            }
        }
    }
}

#[test]
fn texts_that_are_far_too_long_make_the_examples_of_the_whole_ones() {
    let tok = tokenizer();
    let ids = |text: &str| tok.encode(text, false).unwrap();
    let (skip, cut) = (limits(OnLongPrompt::Skip), limits(OnLongPrompt::TruncateLeft));
    let (a, b, c) = (long(1) + "read", long(2), long(3));
    let row = text_row(&a, "yes", "no");
    assert_eq!(sft_example(&row, &tok, &skip).unwrap(), None);
    assert_eq!(pair_example(&row, &tok, &skip).unwrap(), None);
    assert_eq!(prompt_example(&row, &tok, &skip).unwrap(), None);
    let last = |text: &str| ids(text).split_off(ids(text).len() - 30);
    let expected = [&last(&a)[..], &ids(" yes"), &[tok.eos_id()]].concat();
    assert_eq!(sft_example(&row, &tok, &cut).unwrap().unwrap().ids, expected);
    assert_eq!(pair_example(&row, &tok, &cut).unwrap().unwrap().chosen, expected);
    let prompt = prompt_example(&row, &tok, &cut).unwrap().unwrap();
    assert_eq!((prompt.ids, prompt.text), (last(&a), a.clone()));
    // Answers lose their ends.
    let row = text_row("some words", &b, &c);
    let pair = pair_example(&row, &tok, &skip).unwrap().unwrap();
    for (found, answer) in [(pair.chosen, &b), (pair.rejected, &c)] {
        let whole = [ids("some words"), ids(&format!(" {answer}"))].concat();
        assert_eq!(found, whole[..50]);
    }
    assert!(pair.remarks.cut);
    let row = Row { text: Some(b.clone()), ..Row::blank() };
    let example = sft_example(&row, &tok, &skip).unwrap().unwrap();
    assert_eq!((&example.ids[..], example.remarks.cut), (&ids(&b)[..50], true));
}

#[test]
fn conversations_that_are_far_too_long_make_the_sequences_of_the_whole_ones() {
    let tok = tokenizer();
    let say = |role: &str, text: &str| Message::new(role, text);
    let many = |n: usize, bytes: usize| {
        (0..n).flat_map(move |i| {
            let text = words(i as u64, bytes);
            [Message::new("user", &*text), Message::new("assistant", format!("{i} {text}"))]
        })
    };
    let talks: Vec<Vec<Message>> = vec![
        vec![say("user", &long(1)), say("assistant", "yes")],
        vec![say("user", "read"), say("assistant", &long(2))],
        vec![say("system", &long(1)), say("user", &long(2)), say("assistant", &long(3))],
        many(9, 20_000).collect(),
        many(9, 15_000).chain([say("user", &long(4)), say("assistant", "yes")]).collect(),
        many(3, 100).chain([say("user", "a"), say("assistant", &long(4))]).collect(),
    ];
    let context = &Default::default();
    for format in [ChatFormat::Template, ChatFormat::HumanAssistant] {
        for (i, messages) in talks.iter().enumerate() {
            let talk = |most| Talk { tokenizer: &tok, format, context, controls: false, most };
            // The last 50 tokens before the answer, 50 from there on, and what is learned of them.
            let seen = |most, all| {
                let told = talk(most).told(messages, all).unwrap();
                let start = told.turns.last().unwrap().start;
                let range = start.saturating_sub(50)..(start + 50).min(told.ids.len());
                let learned: Vec<bool> = range
                    .clone()
                    .map(|t| told.turns.iter().flat_map(|u| &u.learned).any(|l| l.contains(&t)))
                    .collect();
                (told.ids.len(), told.ids[range].to_vec(), learned, told.continues_prompt)
            };
            for all in [false, true] {
                let (whole, near) = (seen(usize::MAX, all), seen(50, all));
                assert!(near.0 < whole.0 / 2, "talk {i}: {} of {} tokens", near.0, whole.0);
                assert_eq!((near.1, near.2, near.3), (whole.1, whole.2, whole.3), "talk {i} {all}");
            }
            let prompt = &messages[..messages.len() - 1];
            let opened = |most| talk(most).prompt(prompt).unwrap().ids;
            let (whole, near) = (opened(usize::MAX), opened(50));
            let end = |ids: &[i32]| ids[ids.len().saturating_sub(50)..].to_vec();
            assert_eq!(end(&whole), end(&near), "talk {i}");
        }
    }
}

#[test]
fn a_string_of_a_conversation_that_no_sequence_can_hold_keeps_its_ends() {
    let text = format!("begin {} end", "好".repeat(2 << 20));
    let row = Row {
        prompt: Some(Prompt::Chat(vec![Message::new("user", &*text)])),
        chosen: Some(Answer::Chat(vec![Message::new("assistant", "yes")])),
        ..Row::blank()
    };
    let short = shortened(&row, 50);
    let Some(Prompt::Chat(messages)) = &short.prompt else { panic!() };
    let content = messages[0].content();
    assert!((4 << 20) <= content.len() && content.len() < 5 << 20);
    assert!(content.starts_with("begin 好") && content.ends_with("好 end"));
    assert_eq!(short.chosen, row.chosen);
    assert!(matches!(shortened(&row, 1 << 20), Cow::Borrowed(_)));
    let text = Row { text: Some(text), ..Row::blank() };
    assert!(matches!(shortened(&text, 50), Cow::Borrowed(_)));
}
