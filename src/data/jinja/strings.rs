//! Python's work on strings, and `strftime`.

use super::value::{Res, error};

/// Characters to be stripped.
pub(crate) struct Characters(Vec<char>);

impl Characters {
    /// Those of a text, of any length.
    pub(crate) fn of(text: &str) -> Characters {
        let mut all: Vec<char> = text.chars().collect();
        all.sort_unstable();
        all.dedup();
        Characters(all)
    }

    pub(crate) fn has(&self, c: char) -> bool {
        self.0.binary_search(&c).is_ok()
    }
}

/// White space as `str.isspace` has it.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `str.splitlines`.
pub(crate) fn splitlines(s: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut chars = s.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let ends = matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if !ends {
            continue;
        }
        let mut end = at + c.len_utf8();
        if c == '\r' && chars.next_if(|(_, c)| *c == '\n').is_some() {
            end += 1;
        }
        lines.push(&s[start..if keep_ends { end } else { at }]);
        start = end;
    }
    if start < s.len() {
        lines.push(&s[start..]);
    }
    lines
}

/// `str.split` at runs of white space; `limit` counts cuts.
pub(crate) fn split_space(s: &str, limit: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = s.trim_start_matches(is_space);
    while !rest.is_empty() {
        if limit.is_some_and(|limit| parts.len() >= limit) {
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

/// `str.rsplit` at runs of white space.
pub(crate) fn rsplit_space(s: &str, limit: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = s.trim_end_matches(is_space);
    while !rest.is_empty() {
        if limit.is_some_and(|limit| parts.len() >= limit) {
            parts.push(rest);
            break;
        }
        let last = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let start = last.map_or(0, |(at, c)| at + c.len_utf8());
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// A character of title case: two letters in one, of which the first is large.
fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// A character at the start of a word: `ß` becomes `Ss`, not `SS`.
fn titlecase(c: char, out: &mut String) {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => out.push('ǅ'),
        'Ǉ' | 'ǈ' | 'ǉ' => out.push('ǈ'),
        'Ǌ' | 'ǋ' | 'ǌ' => out.push('ǋ'),
        'Ǳ' | 'ǲ' | 'ǳ' => out.push('ǲ'),
        '\u{10d0}'..='\u{10ff}' => out.push(c),
        'ŉ' => out.push_str("ʼN"),
        _ => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
    }
}

/// `str.title`.
pub(crate) fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => titlecase(c, &mut out),
        }
        inside = is_cased(c);
    }
    out
}

/// `str.capitalize`.
pub(crate) fn capitalize(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    if let Some(first) = chars.next() {
        titlecase(first, &mut out);
    }
    out + &chars.as_str().to_lowercase()
}

/// `str.swapcase`.
pub(crate) fn swapcase(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c.is_uppercase() {
            true => out.extend(c.to_lowercase()),
            false if c.is_lowercase() => out.extend(c.to_uppercase()),
            false => out.push(c),
        }
    }
    out
}

/// `str.casefold`, for what folds by its upper case.
pub(crate) fn casefold(s: &str) -> Res<String> {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            c if c.is_ascii() => out.push(c.to_ascii_lowercase()),
            'ı' => out.push(c),
            'İ' => out.push_str("i\u{307}"),
            '\u{13a0}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' | '\u{1f80}'..='\u{1fff}' => {
                return error(format!("casefold of '{c}' is not supported"));
            }
            c => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
        }
    }
    Ok(out)
}

/// `str.isupper`, `islower` or `istitle`.
pub(crate) fn case_is(s: &str, test: &str) -> bool {
    let cased = s.chars().any(is_cased);
    match test {
        "isupper" => cased && !s.chars().any(|c| c.is_lowercase() || is_title(c)),
        "islower" => cased && !s.chars().any(|c| c.is_uppercase() || is_title(c)),
        _ => {
            let mut inside = false;
            let holds = s.chars().all(|c| {
                let good = match (c.is_uppercase() || is_title(c), c.is_lowercase()) {
                    (true, _) => !inside,
                    (_, true) => inside,
                    _ => true,
                };
                inside = is_cased(c);
                good
            });
            cased && holds
        }
    }
}

/// `str.isalpha` and its kin. Beyond ASCII only what needs no table of digits.
pub(crate) fn characters_are(s: &str, test: &str) -> Res<bool> {
    if s.is_empty() {
        return Ok(matches!(test, "isascii" | "isprintable"));
    }
    let digits = matches!(test, "isdigit" | "isdecimal");
    if digits && s.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return error(format!("{test} of digits beyond ASCII is not supported"));
    }
    Ok(s.chars().all(|c| match test {
        "isalpha" => c.is_alphabetic(),
        "isalnum" => c.is_alphanumeric(),
        "isnumeric" => c.is_numeric(),
        "isspace" => is_space(c),
        "isascii" => c.is_ascii(),
        "isprintable" => is_printable(c),
        _ => c.is_ascii_digit(),
    }))
}

/// `str.isidentifier`.
pub(crate) fn is_identifier(s: &str) -> bool {
    let mut chars = s.chars();
    let first = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
    first && chars.all(|c| c.is_alphanumeric() || c == '_')
}

/// `str.expandtabs`, None where the text would be longer than `most`.
pub(crate) fn expandtabs(s: &str, size: usize, most: usize) -> Option<String> {
    let mut out = String::with_capacity(s.len());
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' if size > 0 => {
                let width = size - column % size;
                if out.len().checked_add(width)? > most {
                    return None;
                }
                out.push_str(&" ".repeat(width));
                column += width;
            }
            '\t' => {}
            c => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    Some(out)
}

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in UTC.
struct Moment {
    seconds: i64,
    year: i64,
    month: usize,
    day: i64,
    /// From 0.
    year_day: i64,
    /// From Sunday, 0.
    week_day: i64,
    second: i64,
}

/// `datetime.strftime` of glibc's C locale for seconds since 1970, UTC, with its flags `-`, `_`,
/// `0`, `^` and `#`. An unknown letter stays as written.
pub(crate) fn strftime(format: &str, seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (year_day, week_day) = (days - days_before(year), (days + 4).rem_euclid(7));
    let moment = Moment { seconds, year, month, day, year_day, week_day, second };
    let mut out = String::new();
    write_time(format, &moment, 0, &mut out);
    out
}

fn write_time(format: &str, moment: &Moment, depth: u32, out: &mut String) {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let flags_end = tail.find(|c| !"-_0^#".contains(c)).unwrap_or(tail.len());
        let (flags, letters) = tail.split_at(flags_end);
        let letters = letters.strip_prefix(['E', 'O']).unwrap_or(letters);
        let letter = letters.chars().next();
        rest = &letters[letter.map_or(0, char::len_utf8)..];
        let written = &format[format.len() - tail.len() - 1..format.len() - rest.len()];
        match letter.and_then(|letter| field(letter, moment, depth)) {
            Some((text, width)) => out.push_str(&flagged(text, width, flags)),
            None => out.push_str(written),
        }
    }
    out.push_str(rest);
}

/// A field's text; for a number with its width and padding.
fn field(letter: char, m: &Moment, depth: u32) -> Option<(String, Option<(usize, char)>)> {
    let number = |n: i64, width: usize, pad: char| Some((n.to_string(), Some((width, pad))));
    let text = |s: &str| Some((s.to_owned(), None));
    let hour = m.second / 3600;
    let composed = |format: &str| {
        let mut out = String::new();
        if depth < 2 {
            write_time(format, m, depth + 1, &mut out);
        }
        Some((out, None))
    };
    let (iso_year, iso_week) = iso_week(m);
    match letter {
        'Y' => number(m.year, 4, '0'),
        'C' => number(m.year.div_euclid(100), 2, '0'),
        'y' => number(m.year.rem_euclid(100), 2, '0'),
        'G' => number(iso_year, 4, '0'),
        'g' => number(iso_year.rem_euclid(100), 2, '0'),
        'm' => number(m.month as i64, 2, '0'),
        'd' => number(m.day, 2, '0'),
        'e' => number(m.day, 2, ' '),
        'j' => number(m.year_day + 1, 3, '0'),
        'H' => number(hour, 2, '0'),
        'I' => number((hour + 11) % 12 + 1, 2, '0'),
        'k' => number(hour, 2, ' '),
        'l' => number((hour + 11) % 12 + 1, 2, ' '),
        'M' => number(m.second / 60 % 60, 2, '0'),
        'S' => number(m.second % 60, 2, '0'),
        's' => number(m.seconds, 1, '0'),
        'u' => number((m.week_day + 6) % 7 + 1, 1, '0'),
        'w' => number(m.week_day, 1, '0'),
        'U' => number((m.year_day + 7 - m.week_day) / 7, 2, '0'),
        'W' => number((m.year_day + 7 - (m.week_day + 6) % 7) / 7, 2, '0'),
        'V' => number(iso_week, 2, '0'),
        'f' => text("000000"),
        'B' => text(MONTHS[m.month - 1]),
        'b' | 'h' => text(&MONTHS[m.month - 1][..3]),
        'A' => text(DAYS[m.week_day as usize]),
        'a' => text(&DAYS[m.week_day as usize][..3]),
        'p' => text(if hour < 12 { "AM" } else { "PM" }),
        'P' => text(if hour < 12 { "am" } else { "pm" }),
        'c' => composed("%a %b %e %H:%M:%S %Y"),
        'x' | 'D' => composed("%m/%d/%y"),
        'X' | 'T' => composed("%H:%M:%S"),
        'r' => composed("%I:%M:%S %p"),
        'R' => composed("%H:%M"),
        'F' => composed("%Y-%m-%d"),
        'z' | 'Z' => text(""),
        'n' => text("\n"),
        't' => text("\t"),
        '%' => text("%"),
        _ => None,
    }
}

fn flagged(text: String, width: Option<(usize, char)>, flags: &str) -> String {
    let mut pad = width;
    let mut text = text;
    for flag in flags.chars() {
        match (flag, width) {
            ('-', _) => pad = None,
            ('_', Some((width, _))) => pad = Some((width, ' ')),
            ('0', Some((width, _))) => pad = Some((width, '0')),
            ('^', None) => text = text.to_uppercase(),
            ('#', None) => text = swap_time(&text),
            _ => {}
        }
    }
    match pad {
        Some((width, pad)) if text.len() < width => {
            let (sign, digits) = match text.strip_prefix('-') {
                Some(digits) => ("-", digits),
                None => ("", &*text),
            };
            sign.to_owned() + &pad.to_string().repeat(width - text.len()) + digits
        }
        _ => text,
    }
}

/// `%#p` is in lower case, other names in upper case.
fn swap_time(text: &str) -> String {
    match text {
        "AM" | "PM" => text.to_lowercase(),
        _ => text.to_uppercase(),
    }
}

/// Year and number of the week by ISO 8601.
fn iso_week(m: &Moment) -> (i64, i64) {
    let monday_based = (m.week_day + 6) % 7;
    let week = (m.year_day - monday_based + 10) / 7;
    let weeks_in = |year: i64| {
        // A year has 53 weeks where it begins or ends on a Thursday.
        let thursday = |year: i64| (days_before(year) + 4).rem_euclid(7) == 4;
        let ends = (days_before(year + 1) - 1 + 4).rem_euclid(7) == 4;
        if thursday(year) || ends { 53 } else { 52 }
    };
    match week {
        week if week < 1 => (m.year - 1, weeks_in(m.year - 1)),
        week if week > weeks_in(m.year) => (m.year + 1, 1),
        week => (m.year, week),
    }
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: i64) -> i64 {
    let before = year - 1;
    365 * (year - 1970) + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400)
        - 477
}

/// Year, month and day of a day count since 1970-01-01 in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, usize, i64) {
    // Days since 0000-03-01, so that the leap day ends a year, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let leap = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as usize, day)
}

/// A character that Python's `repr` writes as it is.
pub(crate) fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        _ if c.is_ascii() || c.is_control() => false,
        // A combining mark is printable too, and this escapes one only at the start of a text.
        _ => !format!("a{c}").escape_debug().to_string().starts_with("a\\"),
    }
}
