//! What chat templates take from Python: methods of strings and dictionaries, `json.dumps` and
//! `strftime`. Only what templates in the wild call; an unknown method is an error naming it.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

type Outcome = Result<Value, Error>;

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Calls a Python method that the template engine does not know itself.
pub(super) fn method(_: &mut State, value: &Value, name: &str, args: &[Value]) -> Outcome {
    let outcome = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or(""), name, args)?,
        ValueKind::Map => map_method(value, name, args)?,
        _ => None,
    };
    outcome.ok_or_else(|| {
        let message = format!("{} has no method {name}", value.kind());
        Error::new(ErrorKind::UnknownMethod, message)
    })
}

fn string_method(s: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let cut = |c: char| chars.map_or(c.is_whitespace(), |set| set.contains(c));
            Value::from(match name {
                "strip" => s.trim_matches(cut),
                "lstrip" => s.trim_start_matches(cut),
                _ => s.trim_end_matches(cut),
            })
        }
        "split" | "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
            Value::from(split(s, separator, limit, name == "rsplit")?)
        }
        "splitlines" => no_args(args, s.lines().map(Value::from).collect::<Vec<_>>())?,
        "startswith" | "endswith" => {
            let (affix,): (Value,) = from_args(args)?;
            let test = |affix: &Value| {
                let affix =
                    affix.as_str().ok_or_else(|| invalid(format!("{name} needs a string")))?;
                Ok(if name == "startswith" { s.starts_with(affix) } else { s.ends_with(affix) })
            };
            match affix.kind() {
                ValueKind::Seq => {
                    let tests =
                        affix.try_iter()?.map(|a| test(&a)).collect::<Result<Vec<_>, Error>>();
                    Value::from(tests?.contains(&true))
                }
                _ => Value::from(test(&affix)?),
            }
        }
        "upper" => no_args(args, s.to_uppercase())?,
        "lower" => no_args(args, s.to_lowercase())?,
        "title" => no_args(args, title(s))?,
        "capitalize" => no_args(args, capitalize(s))?,
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            Value::from(match count.and_then(|n| usize::try_from(n).ok()) {
                Some(n) => s.replacen(from, to, n),
                None => s.replace(from, to),
            })
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let rest =
                if name == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
            Value::from(rest.unwrap_or(s))
        }
        "find" | "rfind" => {
            let (part,): (&str,) = from_args(args)?;
            let byte = if name == "find" { s.find(part) } else { s.rfind(part) };
            Value::from(byte.map_or(-1, |byte| s[..byte].chars().count() as i64))
        }
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(s.matches(part).count())
        }
        "join" => {
            let (parts,): (Value,) = from_args(args)?;
            let parts: Vec<String> = parts.try_iter()?.map(|p| p.to_string()).collect();
            Value::from(parts.join(s))
        }
        "isdigit" => {
            no_args(args, "")?;
            Value::from(!s.is_empty() && s.chars().all(|c| c.is_ascii_digit()))
        }
        _ => return Ok(None),
    }))
}

fn no_args(args: &[Value], result: impl Into<Value>) -> Outcome {
    let () = from_args(args)?;
    Ok(result.into())
}

/// Python's `split`: without a separator at runs of white space.
fn split(
    s: &str,
    separator: Option<&str>,
    limit: Option<i64>,
    right: bool,
) -> Result<Vec<Value>, Error> {
    let limit = limit.and_then(|n| usize::try_from(n).ok());
    let mut parts: Vec<&str> = match (separator, limit, right) {
        (Some(""), ..) => return Err(invalid("empty separator")),
        (Some(sep), None, _) => s.split(sep).collect(),
        (Some(sep), Some(n), false) => s.splitn(n.saturating_add(1), sep).collect(),
        (Some(sep), Some(n), true) => s.rsplitn(n.saturating_add(1), sep).collect(),
        (None, None, _) => s.split_whitespace().collect(),
        (None, Some(_), _) => return Err(invalid("split with a limit needs a separator")),
    };
    if right && separator.is_some() && limit.is_some() {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn title(s: &str) -> String {
    let mut inside = false;
    s.chars().fold(String::new(), |mut out, c| {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
        out
    })
}

fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

fn map_method(map: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let entries = || -> Result<Vec<(Value, Value)>, Error> {
        map.try_iter()?.map(|k| Ok((k.clone(), map.get_item(&k)?))).collect()
    };
    Ok(Some(match name {
        "items" => {
            no_args(args, "")?;
            let pair = |(k, v)| Value::from(vec![k, v]);
            Value::from(entries()?.into_iter().map(pair).collect::<Vec<_>>())
        }
        "keys" => no_args(args, entries()?.into_iter().map(|e| e.0).collect::<Vec<_>>())?,
        "values" => no_args(args, entries()?.into_iter().map(|e| e.1).collect::<Vec<_>>())?,
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(&key)?;
            match found.is_undefined() {
                true => default.unwrap_or(Value::from(())),
                false => found,
            }
        }
        _ => return Ok(None),
    }))
}

/// How `json.dumps` writes.
struct Style {
    indent: Option<usize>,
    comma: String,
    colon: String,
    sort_keys: bool,
    ascii: bool,
}

/// `json.dumps(value)` with the options Hugging Face's `tojson` takes, `ensure_ascii=False` unless
/// given.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = match separators.as_deref() {
        None => (comma.to_owned(), ": ".to_owned()),
        Some([comma, colon]) => (comma.clone(), colon.clone()),
        Some(_) => return Err(invalid("tojson: separators are two strings")),
    };
    let (sort_keys, ascii) = (sort_keys.unwrap_or(false), ascii.unwrap_or(false));
    let style = Style { indent: indent.map(|n| n.min(16)), comma, colon, sort_keys, ascii };
    let mut out = String::new();
    dump(value, &style, 0, &mut out)?;
    Ok(out)
}

fn quoted(s: &str, ascii: bool) -> String {
    let json = serde_json::Value::from(s).to_string();
    if !ascii {
        return json;
    }
    let mut units = [0; 2];
    json.chars().fold(String::new(), |mut out, c| {
        match c.is_ascii() {
            true => out.push(c),
            false => {
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        out
    })
}

fn dump(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > 100 {
        return Err(invalid("tojson: nested too deeply"));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        // The engine itself writes them as Python does.
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => {
            out.push_str(&quoted(value.as_str().unwrap_or(""), style.ascii));
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let is_map = value.kind() == ValueKind::Map;
            out.push(if is_map { '{' } else { '[' });
            let mut items: Vec<Value> = value.try_iter()?.collect();
            if is_map && style.sort_keys {
                items.sort_by_key(Value::to_string);
            }
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.comma);
                }
                new_line(style.indent, depth + 1, out);
                if is_map {
                    out.push_str(&quoted(&item.to_string(), style.ascii));
                    out.push_str(&style.colon);
                    dump(&value.get_item(item)?, style, depth + 1, out)?;
                } else {
                    dump(item, style, depth + 1, out)?;
                }
            }
            if !items.is_empty() {
                new_line(style.indent, depth, out);
            }
            out.push(if is_map { '}' } else { ']' });
        }
        other => return Err(invalid(format!("tojson: {other} has no JSON form"))),
    }
    Ok(())
}

fn new_line(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(width) = indent {
        out.push('\n');
        out.push_str(&" ".repeat(width * depth));
    }
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

/// `strftime` for seconds since 1970, UTC; `%-d` is `%d` without padding, an unknown letter stays as
/// written.
pub(super) fn strftime(format: &str, seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days + 4).rem_euclid(7) as usize]);
    let field = |letter: char| {
        Some(match letter {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year.rem_euclid(100)),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.to_owned(),
            'b' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'H' => format!("{:02}", second / 3600),
            'I' => format!("{:02}", (second / 3600 + 11) % 12 + 1),
            'p' => if second < 43_200 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{:02}", second / 60 % 60),
            'S' => format!("{:02}", second % 60),
            '%' => "%".to_owned(),
            _ => return None,
        })
    };
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let letters = tail.strip_prefix('-').unwrap_or(tail);
        let (bare, letter) = (letters.len() < tail.len(), letters.chars().next());
        rest = &letters[letter.map_or(0, char::len_utf8)..];
        let written = &format[format.len() - tail.len() - 1..format.len() - rest.len()];
        match letter.and_then(field) {
            Some(text) if bare => {
                let digits = text.trim_start_matches(['0', ' ']);
                out.push_str(if digits.is_empty() { "0" } else { digits });
            }
            Some(text) => out.push_str(&text),
            None => out.push_str(written),
        }
    }
    out + rest
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
