use super::*;
use proptest::prelude::*;

#[test]
fn sizes_have_units() {
    assert_eq!(parse_bytes("5GB"), Some(5_000_000_000));
    assert_eq!(parse_bytes("3 MiB"), Some(3 << 20));
    for bad in ["", "5", "GB", "0GB", "-1GB", "5.5GB", "5XB", "99999999999TB"] {
        assert_eq!(parse_bytes(bad), None, "{bad}");
    }
}

#[test]
fn iterations_and_times() {
    assert_eq!(parse_every("50"), Some(Every::Iterations(50)));
    let time = |s| Some(Every::Time(Duration::from_secs(s)));
    assert_eq!(parse_every("10m"), time(600));
    assert_eq!(parse_every("10 min"), time(600));
    assert_eq!((parse_every("90s"), parse_every("2h")), (time(90), time(7200)));
    for bad in ["", "0", "0m", "m", "-1", "1.5h", "1d", "99999999999"] {
        assert_eq!(parse_every(bad), None, "{bad}");
    }
    assert_eq!((parse_time("90s"), parse_time("90")), (Some(Duration::from_secs(90)), None));
    let whole = Kind::Every.accept(&Value::Integer(7));
    assert_eq!(whole, Some(Value::String("7".into())));
}

#[test]
fn numbers_that_are_none_are_refused() {
    for x in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-300, 1.0 + 1e-9] {
        assert!(Kind::between(0.0, 1.0).accept(&Value::Float(x)).is_none(), "{x}");
    }
    assert!(Kind::above_zero(1.0).accept(&Value::Float(0.0)).is_none());
    assert!(Kind::above_zero(1.0).accept(&Value::Float(1.0)).is_some());
    assert!(Kind::below(1.0).accept(&Value::Float(1.0)).is_none());
    assert!(Kind::below(1.0).accept(&Value::Float(0.0)).is_some());
    assert!(Kind::int(0, 9).accept(&Value::Float(3.0)).is_none());
    assert_eq!(Kind::below(9.0).accept(&Value::Integer(3)), Some(Value::Float(3.0)));
}

#[test]
fn a_range_holds_for_the_32_bit_float_that_is_used() {
    let refused = |kind: Kind, x: f64| {
        let key = Key::new("k", RUNS, kind, "");
        key.accept("\"k\"", &Value::Float(x)).map_err(|e| e.to_string()).unwrap_err()
    };
    let line = refused(Kind::below(1.0), 0.99999999);
    let range = "\"k\" must be a number from 0 to below 1, not 0.99999999";
    assert_eq!(line, format!("{range}, which is 1.0 as the 32-bit float that is used"));
    let line = refused(Kind::above_zero(0.1), 1e-46);
    assert!(line.ends_with("1e-46, which is 0.0 as the 32-bit float that is used"), "{line}");
    assert!(refused(Kind::below(1.0), 1.5).ends_with("not 1.5"));
    // Bounds are rounded as values are, so those that belong to a range stay in it.
    for bound in [1e-20, 0.01, 0.1, 1e6] {
        let kind = Kind::between(bound, bound);
        assert_eq!(kind.accept(&Value::Float(bound)), Some(Value::Float(bound)));
    }
    assert!(Kind::below(1.0).accept(&Value::Float(0.9999999)).is_some());
}

#[test]
fn zero_may_stand_beside_a_range() {
    let kind = Kind::zero_or_between(0.01, 10.0);
    let takes = |x: f64| kind.accept(&Value::Float(x)).is_some();
    assert!(takes(0.0) && takes(0.01) && takes(10.0) && kind.accept(&Value::Integer(0)).is_some());
    assert!(!takes(1e-3) && !takes(1e-50) && !takes(-0.01) && !takes(11.0) && !takes(f64::NAN));
    assert_eq!(kind.expected(), "0, or a number from 0.01 to 10");
    assert_eq!(Kind::between(1e-20, 0.1).expected(), "a number from 1e-20 to 0.1");
}

#[test]
fn a_single_value_is_a_list_of_one() {
    let list = Kind::List(&Kind::Int { min: 1, max: 3 });
    assert_eq!(list.accept(&Value::Integer(2)), Some(Value::Array(vec![Value::Integer(2)])));
    assert_eq!(list.accept(&Value::Array(vec![Value::Integer(4)])), None);
}

#[test]
fn long_values_are_cut() {
    let long = "é".repeat(500);
    assert!(shown(&Value::String(long)).chars().count() <= 60);
}

proptest! {
    #[test]
    fn an_integer_is_taken_exactly_in_its_range(x: i64, a in -1000i64..1000, n in 0i64..1000) {
        let kind = Kind::int(a, a + n);
        for x in [x, a + x.rem_euclid(3 * (n + 1)) - n] {
            let inside = a <= x && x <= a + n;
            prop_assert_eq!(kind.accept(&Value::Integer(x)).is_some(), inside);
            prop_assert_eq!(kind.accept(&kind.parse(&x.to_string())).is_some(), inside);
        }
    }
}
