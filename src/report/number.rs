//! Numbers, durations and dates as people read them.

/// `x` with `digits` significant digits; whole numbers below a million without decimals.
pub(crate) fn significant(x: f64, digits: usize) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if x == x.trunc() && x.abs() < 1e6 {
        return format!("{}", x as i64);
    }
    // Rounding may carry into another power of ten, so the exponent is taken after it.
    let scientific = format!("{x:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        let mantissa = match mantissa.contains('.') {
            true => mantissa.trim_end_matches('0').trim_end_matches('.'),
            false => mantissa,
        };
        return format!("{mantissa}e{exponent}");
    }
    format!("{x:.*}", (digits as i32 - 1 - exponent).max(0) as usize)
}

/// `3.4s`, `42s`, `1m20s`, `2h05m`, `3d04h`.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

/// The moment `time` seconds after 1970 began, as `2025-03-09 14:05 UTC`.
pub(super) fn date(time: f64) -> String {
    let time = if time.is_finite() { time.clamp(0.0, 253_402_300_799.0) as u64 } else { 0 };
    let (mut days, minutes) = (time / 86400, time % 86400 / 60);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

/// Round ticks, about `target` of them, whose first and last enclose `lo` and `hi`. Both must be
/// finite, `lo <= hi`; equal bounds get room around them.
pub(super) fn ticks(lo: f64, hi: f64, target: usize) -> Vec<f64> {
    let size = lo.abs().max(hi.abs());
    let (lo, hi) = match hi - lo > size * 1e-6 {
        // Below it a step would be 0.
        _ if size < 1e-100 => (0.0, 1.0),
        true => (lo, hi),
        false => (lo - size * 0.1, hi + size * 0.1),
    };
    let step = round_step((hi - lo) / target as f64);
    // A bound that is a tick but for rounding needs no further tick.
    let first = (lo / step + 1e-6).floor() as i64;
    let last = (hi / step - 1e-6).ceil() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The smallest of 1, 2, 5 times a power of ten that is at least about `x`, which is positive.
pub(super) fn round_step(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= x * 0.75);
    factor.unwrap_or(10.0) * power
}

/// The label of `x` on an axis with ticks `step` apart, the largest being `largest`.
pub(super) fn tick_label(x: f64, step: f64, largest: f64) -> String {
    let (x, step, unit) = match largest {
        l if l >= 1e9 => return significant(x, 3),
        l if l >= 1e6 => (x / 1e6, step / 1e6, "M"),
        l if l >= 1e4 => (x / 1e3, step / 1e3, "k"),
        l if l < 1e-3 => return significant(x, 3),
        _ => (x, step, ""),
    };
    let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 8.0) as usize;
    match x.abs() < step * 1e-6 {
        true => "0".to_owned(),
        false => format!("{x:.decimals$}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_asked_for() {
        let shown = |x| significant(x, 3);
        assert_eq!(shown(0.31), "0.310");
        assert_eq!(shown(-2.3456), "-2.35");
        assert_eq!(shown(9.999), "10.0");
        assert_eq!(shown(412.37), "412");
        assert_eq!(shown(41200.0), "41200");
        assert_eq!(shown(1.5e-5), "1.5e-5");
        assert_eq!(shown(9.65e-6), "9.65e-6");
        assert_eq!(shown(2.0e9), "2e9");
        assert_eq!(shown(0.0), "0");
        assert_eq!(shown(f64::NAN), "nan");
        assert_eq!(shown(f64::NEG_INFINITY), "-inf");
    }

    #[test]
    fn durations_and_dates() {
        let given = [0.04, 9.96, 59.4, 80.0, 3600.0, 7500.0, 273_600.0, f64::NAN];
        let shown = ["0.0s", "10s", "59s", "1m20s", "1h00m", "2h05m", "3d04h", "?"];
        assert_eq!(given.map(duration), shown);
        assert_eq!(date(0.0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_868_740.0), "2000-02-29 23:59 UTC");
        assert_eq!(date(1_741_529_100.0), "2025-03-09 14:05 UTC");
        assert_eq!(date(f64::NAN), "1970-01-01 00:00 UTC");
    }

    #[test]
    fn ticks_are_round_and_enclose_the_data() {
        let labels = |lo, hi| {
            let all = ticks(lo, hi, 4);
            let largest = all.iter().fold(0f64, |a, x| a.max(x.abs()));
            all.iter().map(|&x| tick_label(x, all[1] - all[0], largest)).collect::<Vec<_>>()
        };
        assert_eq!(labels(2.05, 3.41), ["2.0", "2.5", "3.0", "3.5"]);
        assert_eq!(labels(-0.4, 1.1), ["-0.5", "0.0", "0.5", "1.0", "1.5"].map(zero));
        assert_eq!(labels(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(38_500.0, 43_900.0), ["38k", "40k", "42k", "44k"]);
        assert_eq!(labels(0.0, 9.6e-6), ["0", "2e-6", "4e-6", "6e-6", "8e-6", "1e-5"]);
        assert_eq!(labels(7.0, 7.0), ["6.0", "6.5", "7.0", "7.5", "8.0"]);
        let mut size = 1e-90;
        while size < 1e90 {
            for (lo, hi) in [(0.3, 0.7), (-5.0, 3.0), (1.0, 1.0 + 1e-12), (-2.0, -2.0), (0.0, 0.0)]
            {
                let (lo, hi) = (lo * size, hi * size);
                let all = ticks(lo, hi, 4);
                assert!((2..=8).contains(&all.len()), "{lo} {hi}: {all:?}");
                let room = (all[1] - all[0]) * 1e-5;
                assert!(all[0] <= lo + room && hi <= all[all.len() - 1] + room, "{lo} {hi}");
            }
            size *= 7.3;
        }
    }

    fn zero(label: &str) -> &str {
        if label == "0.0" { "0" } else { label }
    }
}
