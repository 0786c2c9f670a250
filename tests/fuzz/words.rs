//! Words of each format, to be thrown in where they do harm.

pub(crate) const SAFETENSORS: &[&[u8]] = &[
    b"__metadata__", b"\"dtype\"", b"\"shape\"", b"\"data_offsets\"", b"F32", b"BF16", b"F64", b"BOOL", b"I64", b"F8_E4M3",
    b"[0,0]", b"[]", b"[0]", b"[1,1,1,1,1,1,1,1]", b"[18446744073709551615,2]", b"[4294967296,4294967296]",
    b"\"c\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[14,14]},", b"null", b"{", b"}", b"[[[[[[[[", b"\\u0000", b"\\ud800",
    b"\xff\xfe", b"version https://git-lfs",
];

pub(crate) const PICKLES: &[&[u8]] = &[
    b"(", b")", b"}", b"]", b"N", b".", b"0", b"1", b"2", b"K\x01", b"M\x01\x01", b"J\xff\xff\xff\xff", b"t", b"\x85", b"\x86",
    b"\x87", b"R", b"b", b"s", b"u", b"a", b"e", b"Q", b"P0\n", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"h\x05", b"r\xff\xff\xff\xff",
    b"j\0\0\0\0", b"\x94", b"\x93", b"\x95\xff\xff\xff\xff\xff\xff\xff\xff", b"\x80\x04", b"\x81", b"\x82\x01", b"\x88", b"\x89",
    b"\x8a\x01\x80", b"\x8a\xff", b"\x8b\xff\xff\xff\xff", b"\x8c\x01a", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff", b"X\x01\0\0\0a", b"X\x07\0\0\0storage", b"X\x03\0\0\0cpu", b"X\x010", b"G\0\0\0\0\0\0\0\0",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n", b"ctorch\nBoolStorage\n", b"cos\nsystem\n", b"ios\nsystem\n",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\x08\0\0\0\0\0\0\0\x40",
];

pub(crate) const ARCHIVES: &[&[u8]] = &[
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08", b"PK\x05\x05", b"\x01\0\x1c\0",
    b"\x01\0\x10\0\xff\xff\xff\xff\xff\xff\xff\xff", b"../", b"/", b"a/data.pkl", b"a/data/0", b"a/byteorder", b"data.pkl", b"\0",
    b"\xff\xff\xff\xff", b"\xff\xff", b"\x01\x99\x07\0", b"up\x06\0", b"UT\x05\0",
];

pub(crate) const INDEXES: &[&[u8]] = &[
    b"\"weight_map\"", b"\"metadata\"", b"../outside.safetensors", b"..", b".", b"/", b"./", b"one.safetensors", b"two.safetensors",
    b"sub/three.safetensors", b"model.safetensors.index.json", b"\\u002e\\u002e/", b"\\\\", b"\\u0000", b"pytorch_model.bin",
    b"link.safetensors", b"\"a\":\"one.safetensors\",", b"\"c\":\"two.safetensors\",", b"{}", b"null", b"[]", b"file://",
    b"/etc/passwd",
];

pub(crate) const MANIFESTS: &[&[u8]] = &[
    b"\"format_version\": 1", b"\"format_version\": 2", b"\"program\":", b"\"step\": \"ppo\"", b"\"iteration\":", b"\"finished\": true",
    b"\"config\": {}", b"\"inputs\": []", b"\"values\": {}", b"\"files\": []", b"\"tensors\":", b"\"header\":", b"\"name\":", b"\"bytes\":",
    b"../outside.safetensors", b"..", b"/", b"./", b"manifest.json", b"state-00001.safetensors", b"state-00002.safetensors", b"model/m/a",
    b"18446744073709551615", b"18446744073709551616", b"-1", b"1e308", b"\"0123456789abcdef\"", b"\"checksum\":", b"null", b"{", b"}",
    b"[[[[[[[[", b"{\"a\":{\"a\":{\"a\":", b"\\u0000", b"\\ud800", b"\xff", b"\n", b",",
];

pub(crate) const CONFIGS: &[&[u8]] = &[
    b"\"llama\"", b"\"gpt2\"", b"\"opt\"", b"\"bloom\"", b"\"gpt_neo\"", b"\"gpt_neox\"", b"\"gptj\"", b"\"codegen\"", b"\"gemma2\"",
    b"\"phi3\"", b"\"qwen2\"", b"\"qwen3\"", b"\"mistral\"", b"\"vocab_size\":", b"\"hidden_size\":", b"\"num_hidden_layers\":",
    b"\"num_attention_heads\":", b"\"num_key_value_heads\":", b"\"head_dim\":", b"\"n_layer\":", b"\"n_head\":", b"\"n_embd\":",
    b"\"rotary_dim\":", b"\"rotary_pct\":", b"\"partial_rotary_factor\":", b"\"rope_theta\":", b"\"rope_scaling\":{\"type\":\"linear\",\"factor\":",
    b"\"rope_parameters\":{\"rope_type\":\"llama3\",", b"\"sliding_window\":", b"\"layer_types\":[\"sliding_attention\"],",
    b"\"max_position_embeddings\":", b"\"word_embed_proj_dim\":", b"\"attention_types\":[[[\"global\",\"local\"],1]],",
    b"\"intermediate_size\":", b"\"query_pre_attn_scalar\":", b"\"eos_token_id\":", b"null", b"true", b"false", b"0", b"1", b"-1",
    b"1e308", b"1e-320", b"\"\"", b"[]", b"{}", b"4294967296", b"18446744073709551615", b"[[[[[[[[[[", b"\"gelu\"", b"\"silu\"",
];

pub(crate) const ADAPTERS: &[&[u8]] = &[
    b"\"r\":", b"\"lora_alpha\":", b"\"target_modules\":", b"\"q_proj\"", b"\"v_proj\"", b"\"all-linear\"", b"\"all\"", b"\"fc1\"",
    b"\"base_model_name_or_path\":", b"\"base\"", b"\"..\"", b"\"/\"", b"\"\"", b"\"peft_type\":\"LORA\"", b"\"use_dora\":true",
    b"null", b"[]", b"{}", b"true", b"0", b"-1", b"1e308",
];

pub(crate) const CACHE_NAMES: &[&[u8]] =
    &[b"..", b"/", b"../", b"../../..", b"good", b"\n", b" ", b"\0", b".", b"./good", b"good/../good", b"/etc", b"\xff"];

pub(crate) const TOKENIZERS: &[&[u8]] = &[
    b"\"added_tokens\":[", b"\"normalizer\":", b"\"pre_tokenizer\":", b"\"post_processor\":", b"\"decoder\":", b"\"model\":", b"null",
    b"{\"type\":\"NFC\"}", b"{\"type\":\"Lowercase\"}", b"{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
    b"{\"type\":\"Sequence\",\"normalizers\":[]}", b"{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"bb\"}",
    b"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(a|b)*\"},\"content\":\"\"}", b"{\"type\":\"Prepend\",\"prepend\":\"_\"}",
    b"{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}", b"{\"type\":\"Whitespace\"}",
    b"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\",\"split\":true}", b"{\"type\":\"BertNormalizer\"}",
    b"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?=a)(b|a+)+$\"},\"behavior\":\"Isolated\",\"invert\":false}",
    b"{\"type\":\"FixedLength\",\"length\":0}", b"{\"type\":\"Digits\",\"individual_digits\":true}", b"{\"type\":\"ByteFallback\"}",
    b"{\"type\":\"Punctuation\",\"behavior\":\"MergedWithNext\"}", b"{\"type\":\"CTC\",\"pad_token\":\"\",\"word_delimiter_token\":\"\",\"cleanup\":true}",
    b"{\"type\":\"Strip\",\"content\":\"a\",\"start\":4294967296,\"stop\":1}", b"{\"type\":\"Fuse\"}", b"{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true}",
    b"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAAAA==\"}", b"\"precompiled_charsmap\":\"/////wAA\"", b"\"continuing_subword_prefix\":\"##\"",
    b"\"end_of_word_suffix\":\"</w>\"", b"\"unk_token\":\"a\"", b"\"unk_id\":", b"\"byte_fallback\":true", b"\"fuse_unk\":true", b"\"dropout\":0.5",
    b"\"merges\":[", b"[\"a\",\"b\"]", b"\"a b\"", b"\"vocab\":{", b"\"max_input_chars_per_word\":", b"\"special\":true", b"\"normalized\":true",
    b"\"lstrip\":true", b"\"rstrip\":true", b"\"single_word\":true", b"\"id\":4294967295", b"\\u0000", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"{1000}{1000}",
    b"(?<!a)", b"\\\\p{L}+", b"\\\\1", b"(((((((((", b"<e>", b"{\"type\":\"Unigram\",\"unk_id\":9,\"vocab\":[[\"a\",-1.0]]}", b"\"padding\":{\"strategy\":{\"Fixed\":1000000000},\"direction\":\"Right\",\"pad_to_multiple_of\":null,\"pad_id\":0,\"pad_type_id\":0,\"pad_token\":\"p\"},",
    b"\"truncation\":{\"max_length\":0,\"strategy\":\"LongestFirst\",\"stride\":9},",
    b"{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<e>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{}}",
];

pub(crate) const TOKENIZER_CONFIGS: &[&[u8]] = &[
    b"\"eos_token\":", b"\"bos_token\":", b"\"pad_token\":", b"\"unk_token\":", b"\"add_bos_token\":true", b"\"add_bos_token\":false",
    b"\"chat_template\":", b"[{\"name\":\"default\",\"template\":\"x\"}]", b"{\"content\":\"<e>\"}", b"\"<e>\"", b"\"eos_token_id\":", b"[2,3]",
    b"4294967296", b"-1", b"null", b"{{ messages }}", b"{% for m in messages %}", b"{% endfor %}", b"\"\"", b"[]", b"{}",
];

pub(crate) const TEMPLATES: &[&[u8]] = &[
    b"{% for m in messages %}", b"{% endfor %}", b"{% if ", b"{% else %}", b"{% endif %}", b"{{ m.content }}", b"{{ m['role'] }}", b"{%- ", b" -%}",
    b"{{- ", b" -}}", b"{# ", b" #}", b"{% raw %}", b"{% endraw %}", b"{% set x = ", b"{% macro f(a) %}", b"{% endmacro %}", b"{{ f(1) }}", b"loop.index0",
    b"loop.last", b"namespace(x=1)", b"ns.x", b"{% set ns.x = m.content %}", b"raise_exception('no')", b"strftime_now('%Y-%m-%d %-d %q %')", b"| tojson(indent=4)",
    b"| trim", b"| upper", b"| join(', ')", b"| length", b"| default('x')", b"| list", b"| sort", b"| unique", b"| map(attribute='role')",
    b"| selectattr('role', 'equalto', 'user')", b"| replace('a', 'bb')", b"| items", b"| batch(2)", b"| slice(3)", b"| first", b"| int", b"| float", b"| abs",
    b".split('a', 1)[0]", b".rsplit('a')", b".strip()", b".startswith(('a', 'b'))", b".title()", b".items()", b".get('role', 1)", b".removeprefix('a')", b".find('a')",
    b"messages[1:]", b"messages[::-1]", b"messages[-1]", b"[0:9223372036854775807:2]", b"range(10)", b"range(-5, 5, 0)", b"~ m.content", b" * 3", b" ** 9", b" // 0",
    b" % 0", b" in ", b" is defined", b" is none", b" not ", b"{% generation %}", b"{% endgeneration %}", b"{% break %}", b"{% continue %}",
    b"{% include 'chat_template' %}", b"{% extends 'chat_template' %}", b"{% import 'chat_template' as t %}", b"{% block a %}", b"{% endblock %}", b"{{ self.a() }}",
    b"{% with a=1 %}", b"{% endwith %}", b"{% filter upper %}", b"{% endfilter %}", b"{% call f() %}", b"{% endcall %}", b"{{ loop(m) }}", b"recursive", b"((((((((",
    b"[[[[[[[[", b"'\\u0000'", b"'\\ud800'", b"\xff",
];

pub(crate) const ROWS: &[&[u8]] = &[
    b"\"prompt\":", b"\"chosen\":", b"\"rejected\":", b"\"completion\":", b"\"response\":", b"\"messages\":", b"\"text\":", b"\"role\":", b"\"content\":",
    b"\"user\"", b"\"assistant\"", b"\"system\"", b"\\n\\nHuman: ", b"\\n\\nAssistant:", b"\\u0000", b"\\ud800", b"\\ud83d\\ude00", b"\xef\xbb\xbf", b"\r\n", b"\n", b"[", b"]",
    b"{", b"}", b",", b"null", b"true", b"1e999", b"<e>", b"\xef\xb7\x90", b"[[[[[[[[[[", b"{\"a\":{\"a\":{\"a\":", b"\xff", b"\"\"", b"[{\"role\":\"user\",\"content\":\"a\"}]",
];

pub(crate) const METRICS: &[&[u8]] = &[
    b"\"event\":", b"\"metrics\"", b"\"sample\"", b"\"run_start\"", b"\"run_end\"", b"\"step_start\"", b"\"step_end\"", b"\"note\"", b"\"warning\"", b"\"values\":{", b"\"step\":\"sft\"",
    b"\"iteration\":", b"\"total\":", b"\"seconds\":", b"\"time\":", b"\"loss\":", b"\"eval_loss\":", b"\"accuracy\":", b"\"kl\":", b"\"loss_before\":1,", b"\"loss_after\":2,", b"null",
    b"1e308", b"-1e308", b"1e-320", b"1e999", b"18446744073709551615", b"0", b"\n", b"\"<script>\"", b"\\u001b[2J", b"\"\"", b"\\ud83d\\ude00",
];

pub(crate) const SETTINGS: &[&[u8]] = &[
    b"[sft]", b"[ppo]", b"[reward]", b"[lora]", b"[[sft]]", b"learning_rate = ", b"sft.learning_rate = ", b"step = [1, 2]", b"data_path = [\"a:2\", \"b\"]", b"data_split = \"2,4,4\"",
    b"max_shard_size = \"5GB\"", b"device = \"cuda:1\"", b"nan", b"inf", b"-inf", b"1e400", b"0x_1", b"1979-05-27T07:32:00Z", b"'''", b"\"\"\"", b"\\u0000", b"\\U0010FFFF", b"{ a = 1 }",
    b"a.a.a.a.a.a.a.a", b"[a.a.a.a.a.a]", b"=", b"\n", b"\r\n", b"#", b"true", b"\"\"", b"9223372036854775808", b":", b"-0", b"\xef\xbb\xbf", b"[[[[[[[[[[[",
];

pub(crate) const FLAGS: &[&[u8]] = &[
    b"train", b"sft", b"reward", b"ppo", b"chat", b"eval", b"inspect", b"bench", b"doctor", b"verify", b"--resume", b"--save-every", b"10m", b"--help", b"--version", b"--print-config", b"--set", b"--preset", b"deepspeed-chat", b"demo", b"--config",
    b"--actor-model", b"--actor_model_name_or_path", b"--critic_model_name_or_path", b"--model_name_or_path", b"--actor_zero_stage", b"--zero_stage", b"--deepspeed", b"--enable_hybrid_engine",
    b"--offload", b"--data_path", b"--data_split", b"--learning_rate", b"--actor_learning_rate", b"--per_device_train_batch_size", b"--lora_dim", b"--actor_lora_dim", b"--dtype", b"fp16", b"bf16",
    b"--step", b"1,2", b"--device", b"cuda:4294967296", b"--max_shard_size", b"99999999999TB", b"--output_dir", b"--local_rank", b"-1", b"nan", b"1e400", b"=", b"--", b"-", b"---", b"--case",
    b"generate-0", b"train-18446744073709551616", b"--set=ppo.kl_coef=1", b"v\n[a]\nb=1", b"--kl-coef", b"\n",
];
