use super::*;
use serde_json::json;

fn config(v: Value) -> Config {
    Config::from_map(v.as_object().unwrap().clone())
}

fn llama() -> Value {
    json!({"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 50,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 500.0}})
}

#[test]
fn both_spellings_of_rope_theta_are_read() {
    let new = config(llama()).arch().unwrap();
    let mut old = llama();
    old.as_object_mut().unwrap().remove("rope_parameters");
    old["rope_theta"] = json!(500.0);
    assert_eq!(new.position, config(old).arch().unwrap().position);
    assert_eq!((new.head_dim, new.kv_heads, new.tied), (8, 2, false));
}

#[test]
fn rotary_scaling_and_odd_widths_follow_the_reference() {
    let mut c = llama();
    c["rope_parameters"] = json!({"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let got = config(c).inv_freq(16, 500.0).unwrap();
    let want = [
        1.0,
        0.237_489_69,
        0.031_185_46,
        0.012_156_16,
        0.005_590_17,
        0.002_570_71,
        0.001_182_18,
        0.000_543_64,
    ];
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-7), "{got:?}");
    let odd = config(llama()).inv_freq(3, 10_000.0).unwrap();
    assert_eq!(odd, [1.0, 10_000f64.powf(-2.0 / 3.0) as f32]);
}

#[test]
fn unsupported_and_missing_values_name_the_key() {
    let with = |key: &str, v: Value| {
        let mut c = llama();
        c[key] = v;
        config(c).arch().unwrap_err().to_string()
    };
    assert!(
        with("model_type", json!("mamba"))
            .contains("model_type \"mamba\" is not supported; known: bloom")
    );
    assert!(with("hidden_size", Value::Null).contains("hidden_size is missing"));
    assert!(with("hidden_act", json!("mish")).contains("hidden_act \"mish\""));
    assert!(
        with("num_key_value_heads", json!(3)).contains("num_key_value_heads 3 does not divide")
    );
    assert!(with("rope_parameters", json!({"rope_type": "yarn"})).contains("yarn"));
}

#[test]
fn sizes_without_measure_are_refused() {
    let cases = [
        ("num_hidden_layers", json!(4_000_000_000u32), "num_hidden_layers is 4000000000"),
        ("num_attention_heads", json!(5000), "num_attention_heads is 5000"),
        ("hidden_size", json!(1 << 21), "sizes are up to 2097152"),
        ("head_dim", json!(1u64 << 31), "rotary positions turn"),
        ("vocab_size", json!(1u64 << 32), "sizes make a model of"),
        ("partial_rotary_factor", json!(1e18), "rotary positions turn"),
        ("partial_rotary_factor", json!(2.0), "rotary positions turn 16 dims of a head of 8"),
        ("partial_rotary_factor", json!(-1), "rotary positions turn 0 dims"),
        ("rms_norm_eps", json!(-1e-5), "the epsilon of norms is"),
        ("rope_parameters", json!({"rope_theta": 0}), "not finite"),
        ("rope_parameters", json!({"rope_theta": -5}), "not finite"),
    ];
    for (key, value, expected) in cases {
        let mut c = llama();
        // Heads small enough for their positions.
        if ["hidden_size", "vocab_size"].contains(&key) {
            c["hidden_size"] = json!(1 << 20);
            c["num_attention_heads"] = json!(64);
        }
        if key == "partial_rotary_factor" {
            c["model_type"] = json!("phi3");
        }
        c[key] = value.clone();
        let e = config(c).arch().unwrap_err().to_string();
        assert!(e.contains(expected), "{key} {value}: {e}");
    }
}
