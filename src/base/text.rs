//! Text of others for a terminal: of models, templates, data, file names. A terminal obeys control
//! characters, and some characters that are not seen change how others are. They are shown by
//! their numbers. Each character is judged by itself, so that text may come in pieces.

use std::borrow::Cow;

/// `text` as one line: line breaks and tabs become spaces, and what drives or deceives a terminal
/// is shown as in `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    shown(text, |c| c == '\n' || c == '\t')
}

/// The same for text of several lines: line breaks and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    shown(text, |_| false)
}

/// `text` with spaces for what `becomes_space`.
fn shown(text: &str, becomes_space: fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|c| becomes_space(c) || is_hidden(c)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if becomes_space(c) => out.push(' '),
            c if is_hidden(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out.into()
}

/// True for characters that a terminal obeys, and for those that are not seen and do not belong to
/// the spelling of a language. The joiners (U+200C, U+200D) and the selectors of variants do.
fn is_hidden(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        // Soft hyphen, and the directions of writing.
        '\u{ad}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' => true,
        // Separators of lines, spaces and signs without width, directions again.
        '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => true,
        // Letters without a form, notes between lines, tags.
        '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{ffa0}' => true,
        '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        c => c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drives_or_deceives_a_terminal_is_shown_by_its_number() {
        let text = "a\u{1b}]0;x\u{7}\r\u{7f}\u{9b}2J\u{202e}b\u{2066}\u{200b}\n\tc";
        let shown = r"a\u{1b}]0;x\u{7}\u{d}\u{7f}\u{9b}2J\u{202e}b\u{2066}\u{200b}";
        assert_eq!(printable(text), format!("{shown}  c"));
        assert_eq!(printable_lines(text), format!("{shown}\n\tc"));
        for c in ('\0'..='\u{9f}').filter(|c| c.is_control() && !['\n', '\t'].contains(c)) {
            assert!(printable_lines(&c.to_string()).starts_with(r"\u{"), "{c:?}");
        }
    }

    #[test]
    fn text_of_all_languages_stays() {
        let text =
            "Käse \\u{1b} 日本語 العربية עברית می\u{200c}خواهم 👩\u{200d}👩 ❤\u{fe0f} 한국어";
        assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        assert!(matches!(printable_lines("a\n\tb"), Cow::Borrowed("a\n\tb")));
    }
}
