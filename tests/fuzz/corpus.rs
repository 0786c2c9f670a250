//! Good inputs for each parser, to be made bad: small, so that an edit hits something.

use duplex::base::DType;
use duplex::formats::OutDir;
use duplex::formats::{Fingerprint, Input, Label, SnapshotBuilder, Sum, write_snapshot};
use std::path::Path;
use std::sync::OnceLock;

fn owned(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

/// Files below `tests/golden` of this name, one for each family.
fn golden(names: &[&str]) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    let files = dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
    files.filter_map(|path| std::fs::read(path).ok()).collect()
}

pub(crate) const HEADERS: [&str; 3] = [
    r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}"#,
    r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"b":{"dtype":"I64","shape":[1,1],"data_offsets":[1,9]},"c":{"dtype":"F16","shape":[2],"data_offsets":[9,13]},"d":{"dtype":"BOOL","shape":[1],"data_offsets":[13,14]}}   "#,
    r#"{"x":{"dtype":"F64","shape":[1],"data_offsets":[6,14]},"":{"dtype":"F16","shape":[3,0],"data_offsets":[0,0]},"y":{"dtype":"I16","shape":[3],"data_offsets":[0,6]}}"#,
];

pub(crate) fn headers() -> Vec<Vec<u8>> {
    owned(&HEADERS)
}

/// A header with its length before it and 14 bytes of data behind.
pub(crate) fn with_header(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &[7; 14]].concat()
}

pub(crate) fn safetensors() -> Vec<Vec<u8>> {
    HEADERS.iter().map(|h| with_header(h.as_bytes())).collect()
}

/// Pickles as torch.save writes them: a tensor; a parameter, transposed, and a tied one, with
/// metadata.
pub(crate) fn pickles() -> Vec<Vec<u8>> {
    let tensor = |name: &[u8], shape: &[u8], offset: u8| {
        let storage = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK";
        let hooks = b"\x89ccollections\nOrderedDict\n)RtR";
        [&[b'X', name.len() as u8, 0, 0, 0][..], name, storage, &[offset], shape, hooks].concat()
    };
    let plain = [
        b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(",
        &tensor(b"a", b"K\x02K\x03\x86K\x03K\x01\x86", 0)[..],
        b"u.",
    ]
    .concat();
    let two = [
        b"\x80\x02}q\x00(",
        &tensor(b"w.weight", b"K\x03K\x02\x86q\x02K\x01K\x03\x86", 0)[..],
        &tensor(b"w.bias", b"K\x02\x85K\x01\x85q\x03", 4),
        b"X\x05\0\0\0epochJ\0\x01\0\0X\x04\0\0\0seed\x8a\x05\xff\xff\xff\xff\x7fX\x02\0\0\0lrG\x3f\xf0\0\0\0\0\0\0u}X\x09\0\0\0_metadata}sb.",
    ]
    .concat();
    let memo = b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94(\x8c\x07storage\x94\x8c\x05torch\x94\x8c\x0cFloatStorage\x94\x93\x94\x8c\x010\x94\x8c\x03cpu\x94K\x06t\x94QK\x00K\x06\x85\x94K\x01\x85\x94\x89}\x94t\x94R\x94u.".to_vec();
    vec![plain, two, memo]
}

/// A zip of `files`, nothing compressed.
pub(crate) fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::{Cursor, Write};
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, data) in files {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A checkpoint of one storage of six floats with this pickle.
pub(crate) fn archive(pickle: &[u8]) -> Vec<u8> {
    zip_of(&[
        ("a/data.pkl", pickle),
        ("a/byteorder", b"little"),
        ("a/data/0", &[1; 24]),
        ("a/version", b"3\n"),
    ])
}

pub(crate) fn archives() -> Vec<Vec<u8>> {
    pickles().iter().map(|p| archive(p)).collect()
}

pub(crate) fn indexes() -> Vec<Vec<u8>> {
    owned(&[
        r#"{"metadata":{"total_size":28},"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors","d":"two.safetensors"}}"#,
        r#"{"weight_map":{"c":"two.safetensors","d":"two.safetensors"}}"#,
        r#"{"weight_map":{"x":"../outside.safetensors","y":"../outside.safetensors","":"../outside.safetensors"}}"#,
    ])
}

/// The checkpoint whose manifest is made bad: tensors of three types, values, inputs; the same from
/// each call.
pub(crate) fn checkpoint(root: &Path) -> std::path::PathBuf {
    let fill = |to: &mut [u8], value| {
        to.fill(value);
        Ok(())
    };
    let mut builder = SnapshotBuilder::default();
    builder.tensor("model/weight/a".into(), DType::Bf16, &[3, 2], |to| fill(to, 7));
    builder.tensor("model/m/a".into(), DType::U8, &[3, 2], |to| fill(to, 200));
    builder.tensor("model/scales/a".into(), DType::F32, &[1, 2], |to| fill(to, 0));
    builder.set("loss_first", 2.5f32);
    builder.set("model.optimizer_steps", 7);
    let checksum = Sum::of(b"data");
    let input = Input {
        path: "data.jsonl".into(),
        data: true,
        fingerprint: Fingerprint { bytes: 4, checksum },
    };
    let config = [("seed", "1"), ("sft.learning_rate", "1e-5")];
    let config = config.map(|(k, v)| (k.to_string(), v.to_string())).into();
    let label =
        Label { step: "sft".into(), iteration: 7, finished: false, config, inputs: vec![input] };
    write_snapshot(&OutDir::create(root).unwrap(), &label, &builder).unwrap()
}

/// Bytes of a manifest before what its checksum is of.
pub(crate) const MANIFEST_HEAD: usize = r#"{"checksum":"0123456789abcdef","#.len();

/// Manifests without their checksum, which the parser puts before what became of them.
pub(crate) fn manifests() -> Vec<Vec<u8>> {
    let tmp = tempfile::tempdir().unwrap();
    let text = std::fs::read(checkpoint(tmp.path()).join("manifest.json")).unwrap();
    vec![text[MANIFEST_HEAD..].to_vec()]
}

pub(crate) fn configs() -> Vec<Vec<u8>> {
    golden(&["config.json", "config_published.json"])
}

/// Configuration of the tiny model that the parser writes weights for.
pub(crate) const TINY: &str = r#"{"model_type":"llama","vocab_size":24,"hidden_size":16,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":20,"max_position_embeddings":32,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true,"hidden_act":"silu","attention_bias":false,"sliding_window":null,"rope_scaling":null}"#;

pub(crate) fn models() -> Vec<Vec<u8>> {
    let windows = TINY
        .replace("\"llama\"", "\"mistral\"")
        .replace("\"sliding_window\":null", "\"sliding_window\":4");
    let scaled = TINY.replace("\"rope_scaling\":null", r#""rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":16}"#);
    let part = TINY
        .replace("\"llama\"", "\"phi3\"")
        .replace("\"attention_bias\":false", "\"partial_rotary_factor\":0.5");
    owned(&[TINY, &windows, &scaled, &part])
}

pub(crate) fn adapters() -> Vec<Vec<u8>> {
    owned(&[
        r#"{"peft_type":"LORA","base_model_name_or_path":"base","r":2,"lora_alpha":8,"lora_dropout":0.0,"target_modules":["q_proj","v_proj"],"use_dora":false,"use_rslora":false,"bias":"none"}"#,
        r#"{"peft_type":"LORA","base_model_name_or_path":"base","r":2,"target_modules":"all-linear"}"#,
    ])
}

pub(crate) fn cache_names() -> Vec<Vec<u8>> {
    owned(&["good", "good\n", "607a30d783dfa663caf39e06633721c8d4cfcd7e"])
}

/// Small tokenizers of every kind of model, with the parts that published ones have.
pub(crate) fn tokenizers() -> Vec<Vec<u8>> {
    static ALL: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let make = || {
        let end = r#"{"id":9,"content":"<e>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}"#;
        let whole = |parts: &str, model: &str| {
            format!(
                r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{end}],{parts},"model":{model}}}"#
            )
        };
        let bpe = r#"{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"b":1,"Ġ":2,"c":3,"ab":4,"abc":5,"Ġab":6,"Ã":7,"©":8,"<e>":9},"merges":[["a","b"],["ab","c"],["Ġ","ab"]]}"#;
        let byte_level = r#""normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|\\p{L}+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
        let llama = r#""normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<e>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<e>":{"id":"<e>","ids":[9],"tokens":["<e>"]}}},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        let fallback = r#"{"type":"BPE","dropout":null,"unk_token":"<u>","continuing_subword_prefix":"","end_of_word_suffix":"","fuse_unk":true,"byte_fallback":true,"vocab":{"<u>":0,"▁":1,"a":2,"▁a":3,"b":4,"<0x41>":5,"<0xC3>":6,"<0xA9>":7,"▁ab":8,"<e>":9},"merges":["▁ a","▁a b"]}"#;
        let unigram = r#"{"type":"Unigram","unk_id":0,"vocab":[["<u>",0.0],["▁",-2.5],["a",-3.0],["▁a",-1.0],["b",-3.5],["ab",-2.0],["é",-4.0],["c",-5.0],["▁ab",-2.25],["<e>",0.0]],"byte_fallback":false}"#;
        let metaspace = r#""normalizer":{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"CAAAAAAEAAAAAAAAYQA="},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true},"post_processor":null,"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true}"#;
        let word_piece = r#"{"type":"WordPiece","unk_token":"[U]","continuing_subword_prefix":"\#\#","max_input_chars_per_word":100,"vocab":{"[U]":0,"a":1,"b":2,"\#\#b":3,"\#\#c":4,"ab":5,"[C]":6,"[S]":7,",":8,"<e>":9}}"#.replace("\\#", "#");
        let bert = r#""normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":{"type":"BertProcessing","sep":["[S]",7],"cls":["[C]",6]},"decoder":{"type":"WordPiece","prefix":"\#\#","cleanup":true}"#.replace("\\#", "#");
        let word_level = r#"{"type":"WordLevel","vocab":{"<u>":0,"a":1,"b":2,"ab":3,"c":4,"7":5,"!":6,"é":7,"x":8,"<e>":9},"unk_token":"<u>"}"#;
        let words = r#""normalizer":{"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"StripAccents"},{"type":"Lowercase"}]},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Whitespace"},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Isolated"}]},"post_processor":{"type":"RobertaProcessing","sep":["<e>",9],"cls":["a",1],"trim_offsets":true,"add_prefix_space":true},"decoder":null"#;
        let prefixed = r#"{"type":"BPE","dropout":null,"unk_token":"<u>","continuing_subword_prefix":"@@","end_of_word_suffix":"</w>","fuse_unk":false,"vocab":{"<u>":0,"a":1,"@@b":2,"ab":3,"@@c":4,"abc":5,"@@c</w>":6,"b":7,"abc</w>":8,"<e>":9},"merges":["a @@b","ab @@c","ab @@c</w>"]}"#;
        owned(&[
            &whole(byte_level, bpe),
            &whole(llama, fallback),
            &whole(metaspace, unigram),
            &whole(&bert, &word_piece),
            &whole(words, word_level),
            &whole(words, prefixed),
        ])
    };
    ALL.get_or_init(make).clone()
}

/// The tokenizer of whole words among them.
pub(crate) fn word_tokenizer() -> Vec<u8> {
    tokenizers().swap_remove(4)
}

pub(crate) fn tokenizer_configs() -> Vec<Vec<u8>> {
    owned(&[
        r#"{"eos_token":"<e>","bos_token":{"__type":"AddedToken","content":"a","lstrip":false},"pad_token":null,"unk_token":"<u>","add_bos_token":true,"chat_template":"{% for m in messages %}{{ m.role }}: {{ m.content }}<e>{% endfor %}"}"#,
        r#"{"eos_token":{"content":"<e>"},"chat_template":[{"name":"default","template":"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"},{"name":"tool_use","template":"x"}]}"#,
        r#"{"eos_token_id":[9,3,4294967296],"bos_token_id":1,"eos_token":"<e>"}"#,
    ])
}

/// Templates with what published ones use.
pub(crate) fn templates() -> Vec<Vec<u8>> {
    owned(&[
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
        "{%- set ns = namespace(system='', first=true) -%}{%- for m in messages -%}{%- if m['role'] == 'system' -%}{%- set ns.system = m['content'] | trim -%}{%- elif loop.index0 % 2 == 0 and m.role != 'user' -%}{{ raise_exception('roles must take turns: ' + m.role) }}{%- else -%}{{ bos_token ~ '[' ~ m.role.upper() ~ '] ' ~ (ns.system ~ '\\n' if ns.first and ns.system else '') ~ m.content.strip() ~ eos_token }}{%- set ns.first = false -%}{%- endif -%}{%- endfor -%}",
        "{% macro tools(list) %}{% for t in list %}{{ t | tojson(indent=2) }}{{ ', ' if not loop.last }}{% endfor %}{% endmacro %}{{ strftime_now('%d %b %Y') }}{% if tools is defined and tools is not none %}{{ tools(documents) }}{% endif %}{% for m in messages[1:] %}{% generation %}{{ m.content.split('</think>')[-1].lstrip('\\n') | replace('a', 'b') }}{% endgeneration %}{% endfor %}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') | list %}{{ m.items() | list }}{{ m.get('content', 'none')[:20] }}{% break %}{% endfor %}{{ messages | length }}{{ messages | map(attribute='role') | join(',') }}{% for k, v in {'a': 1, 'b': [2, 3.5]} | items %}{{ k }}={{ v }}{% endfor %}{{ range(3) | list | tojson }}",
    ])
}

pub(crate) fn rows() -> Vec<Vec<u8>> {
    owned(&[
        "{\"prompt\":\"Human: a b\\nAssistant:\",\"chosen\":\" ab\",\"rejected\":\" c\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n",
        "\u{feff}{\"messages\":[{\"role\":\"system\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b <e>\"},{\"role\":\"assistant\",\"content\":\"ab\"}]}\r\n{\"text\":\"ab c é\"}\r\n\r\n",
        "[{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"b\"}],\"rejected\":[{\"role\":\"assistant\",\"content\":\"c\"}]},\n {\"prompt\":\"a\",\"response\":\"b\",\"rejected\":null}]",
        "{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant: b\",\"rejected\":\"\\n\\nHuman: a\\n\\nAssistant: c\"}\n{\"prompt\":\"\\u00e9 \\ud83d\\ude00\",\"extra\":[1,2.5e3,{\"x\":null}]}",
    ])
}

pub(crate) fn texts() -> Vec<Vec<u8>> {
    owned(&[
        "One paragraph\nof two lines.\n\n\nAnother, é 日本.\r\n\r\nThe last",
        "\u{feff}x\n \n\ty\n",
    ])
}

pub(crate) fn metrics() -> Vec<Vec<u8>> {
    owned(&[
        "{\"time\":1700000000.5,\"event\":\"run_start\",\"name\":\"run\",\"run_dir\":\"/tmp/run\",\"summary\":[[\"device\",\"CPU\"]]}\n{\"time\":1700000001,\"event\":\"step_start\",\"step\":\"sft\",\"title\":\"Step 1\",\"total\":10,\"unit\":\"batches\"}\n{\"time\":1700000002,\"event\":\"metrics\",\"step\":\"sft\",\"iteration\":1,\"values\":{\"loss\":2.5,\"lr\":1e-5,\"eval_loss\":null}}\n{\"time\":1700000003,\"event\":\"metrics\",\"step\":\"sft\",\"iteration\":2,\"values\":{\"loss\":2.25,\"accuracy\":0.5}}\n{\"time\":1700000004,\"event\":\"step_end\",\"step\":\"sft\",\"seconds\":3.5,\"summary\":{\"loss_before\":3,\"loss_after\":2}}\n",
        "{\"time\":1,\"event\":\"metrics\",\"step\":\"ppo\",\"iteration\":7,\"values\":{\"reward\":-0.25,\"kl\":0.01,\"tokens_per_s\":1234}}\n{\"time\":2,\"event\":\"sample\",\"step\":\"ppo\",\"iteration\":7,\"prompt\":\"Human: a\\n\",\"answer\":\"<b>\",\"baseline\":null,\"score\":0.5,\"baseline_score\":null}\n{\"time\":3,\"event\":\"note\",\"text\":\"n\"}\n{\"time\":4,\"event\":\"warning\",\"text\":\"w\"}\n{\"time\":5,\"event\":\"run_end\",\"seconds\":9}\n",
    ])
}

pub(crate) fn settings() -> Vec<Vec<u8>> {
    owned(&[
        "actor_model = \"m\"\ndata_path = [\"a.jsonl\", \"b:0.5\"]\ndata_split = \"2,4,4\"\nstep = [1, 3]\ndtype = 'bf16'\ndevice = \"auto\"\n[sft]\nlearning_rate = 1e-5\nmax_steps = 4\nlr_scheduler_type = \"cosine\"\n[ppo]\nkl_coef = 0.1\nreward_rule = \"brevity\"\n[lora]\nlora_module_name = [\"q_proj\"]\n",
        "# comment\nmax_shard_size = \"500 MB\"\neval_fraction = 0.05\noverwrite = true\nppo.top_p = 0.9\nlora = { actor_lora_dim = 8 }\n",
        "sft.learning_rate=2e-5",
    ])
}

pub(crate) fn flags() -> Vec<Vec<u8>> {
    owned(&[
        "train --actor-model m --data_path a.jsonl b.jsonl:0.5 --data_split 2,4,4 --step 1 2 --preset deepspeed-chat --set sft.learning_rate=2e-5",
        "ppo --actor_model_name_or_path a --critic_model_name_or_path b --actor_zero_stage 3 --enable_hybrid_engine --offload --kl-coef=0.2 --gradient-checkpointing",
        "bench --shape tiny --case generate-8,train-512 ppo --repeat 2 --threads 2 --print-config",
        "eval a --baseline b --reward-rule brevity --data-path x:2 --prompts 9",
        "doctor --output-dir x --json y --print-config",
        "verify run --print-config",
        "sft --resume never --save-every 90s --keep-checkpoints 3 --keep-best eval_loss --allow-changed-data",
        "chat m --temperature 0 --system hi --top-p 0.9",
    ])
}
