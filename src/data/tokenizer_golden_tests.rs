//! The ids that `transformers` gives; `tools/tokenizer_goldens.py` makes the files.

use super::*;
use crate::formats::OutDir;
use serde_json::Value;
use std::path::PathBuf;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// FNV-1a of the ids as little-endian u32, 64 bits folded to 32.
fn checksum(ids: &[i32]) -> u32 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = bytes.fold(0xcbf2_9ce4_8422_2325, step);
    (sum >> 32) as u32 ^ sum as u32
}

fn numbers(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

fn agrees(tokenizer: &Tokenizer, kind: &str) {
    let expected = json(&folder().join(kind).join("expected.json"));
    let texts = json(&folder().join("strings.json"));
    let checksums = expected["ids"]["checksums"].as_str().unwrap();
    assert_eq!(tokenizer.vocab_size() as u64, expected["size"].as_u64().unwrap(), "{kind}");
    assert_eq!(i64::from(tokenizer.eos_id()), expected["eos"].as_i64().unwrap(), "{kind}");
    assert_eq!(tokenizer.bos_prefix(), numbers(&expected["prefix"]), "{kind}");
    for (text, id) in expected["special"].as_object().unwrap() {
        let found = tokenizer.inner.token_to_id(text).map(u64::from);
        assert_eq!(found, id.as_u64(), "{kind} {text}");
    }
    let texts = texts.as_array().unwrap();
    assert_eq!((texts.len(), checksums.len()), (2000, 16_000));
    for (at, text) in texts.iter().enumerate() {
        let text = text.as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        if at == 80 {
            assert_eq!(ids, numbers(&expected["ids"]["first"]), "{kind} {text:?}");
        }
        let sum = format!("{:08x}", checksum(&ids));
        assert_eq!(sum, checksums[8 * at..8 * at + 8], "{kind} {at}: {text:?} {ids:?}");
    }
}

#[test]
fn ids_are_those_of_transformers() {
    for kind in ["opt", "gpt2", "prefix_space", "llama2"] {
        let tokenizer = Tokenizer::load(&folder().join(kind)).unwrap();
        assert!(tokenizer.notes().is_empty(), "{:?}", tokenizer.notes());
        agrees(&tokenizer, kind);
        // The files that an export gets say the same, with and without those they were built from.
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(&OutDir::create(dir.path()).unwrap()).unwrap();
        agrees(&Tokenizer::load(dir.path()).unwrap(), kind);
        for name in ["vocab.json", "merges.txt", "added_tokens.json"] {
            let _ = std::fs::remove_file(dir.path().join(name));
        }
        agrees(&Tokenizer::load(dir.path()).unwrap(), kind);
    }
}
